"""What an agent must find again after a restart: whose orders it carried out, and its workers. A file, replaced as a whole.

Never here: what is made of it (agent.py).
"""

import fcntl
import hashlib
import logging
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from autoscaler.agent.obeying import Trust
from autoscaler.agent.processes import Identity, boot
from dispatch.errors import PenstockError
from dispatch.messages import READABLE_VERSIONS, SCHEMA_VERSION
from dispatch.scaling import Launch

_log = logging.getLogger("penstock.agent")


@dataclass(frozen=True, slots=True)
class Kept:
    """One launch. `process` None: none runs. `gpu`: the device it was put on."""

    launch: Launch
    process: Identity | None = None
    gpu: str = ""
    since_ms: int = 0
    exits: int = 0
    failures: int = 0
    crash_loop: bool = False
    stopping: bool = False
    error: str = ""
    last_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """All of it."""

    host: str
    epoch: int = 0
    launches: tuple[Kept, ...] = ()
    trust: Trust = field(default_factory=Trust)
    v: int = SCHEMA_VERSION


class StateFile:
    """The file and its lock: one agent a host name and folder."""

    def __init__(self, folder: Path, host: str) -> None:
        """Raises PenstockError when another agent has it, or the folder cannot be written to."""
        self._path = folder / f"agent-{host}.json"
        self.logs = folder / "logs"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            self._lock: IO[Any] = (folder / f"agent-{host}.lock").open("a")
        except OSError as error:
            raise PenstockError(
                "bad_setting",
                f"The agent cannot keep its state in {folder}: {error.strerror}.",
                hint="Set agent.state_dir to a folder that this user can write to.",
                param="agent.state_dir",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise PenstockError(
                "bad_setting",
                f"An agent for the host {host!r} runs here already.",
                hint="End it first, or give this one a name and a folder of its own: agent.host, agent.state_dir.",
                param="agent.host",
            ) from None
        self._host = host
        place = os.fstat(self._lock.fileno())
        mark = hashlib.sha256(f"{boot()} {place.st_dev} {place.st_ino}".encode()).hexdigest()[:8]
        self.owner = f"{socket.gethostname()}-{mark}"
        """Who keeps its state here: the same over restarts of the agent, another on every machine and in every folder."""

    def load(self) -> State:
        """What was kept; nothing where there is no file or one that cannot be read: workers are then found by looking."""
        try:
            state = msgspec.json.decode(self._path.read_bytes(), type=State)
        except FileNotFoundError:
            return State(self._host)
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("cannot read the agent's state", extra={"path": str(self._path), "why": str(error)})
            return State(self._host)
        if state.v not in READABLE_VERSIONS or state.host != self._host:
            return State(self._host)
        return state

    def save(self, state: State) -> None:
        """All or nothing, also through a power cut."""
        fresh = self._path.with_suffix(".new")
        try:
            with fresh.open("wb") as file:
                file.write(msgspec.json.encode(state))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            _log.warning("cannot keep the agent's state", extra={"path": str(self._path), "why": str(error)})

    def close(self) -> None:
        """Let the next one have it."""
        self._lock.close()
