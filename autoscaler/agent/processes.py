"""Processes that outlive the one that started them: known by pid and start time, watched by pidfd, found again in /proc.

Never here: which should run (tending.py). Linux only: nothing else tells of the end of a process that is no child.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dispatch.configuration import variable

LAUNCH = variable("worker.launch").encode()
HOST = variable("agent.host").encode()
_PROC = Path("/proc")
_STATE, _SESSION, _STARTED = 0, 3, 19  # in /proc/PID/stat, after the name


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, and never another one that got its pid: `started` is field 22 of its stat, which counts from that `boot`."""

    pid: int
    started: str
    boot: str

    def lives(self) -> bool:
        """Whether it runs; one that ended and was not reaped does not."""
        fields = _stat(self.pid)
        return fields is not None and fields[_STATE] not in "ZX" and identity_of(self.pid) == self


def identity_of(pid: int) -> Identity | None:
    """Who has that pid now."""
    fields = _stat(pid)
    return None if fields is None else Identity(pid, fields[_STARTED], boot())


def start(command: list[str], environment: Mapping[str, str], log: Path) -> Identity:
    """Start it in a session of its own, its output into the log. Raises OSError."""
    pid = os.posix_spawn(
        command[0],
        command,
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGPIPE],
    )
    found = identity_of(pid)
    assert found is not None, "nobody reaps our child but we"
    return found


class Watch:
    """Tells once when a process has ended: its exit code, negative for a signal; None if it is not our child."""

    def __init__(self, process: Identity, on_end: Callable[[int | None], None]) -> None:
        """Raises ProcessLookupError if it is gone already."""
        self.process = process
        self._on_end = on_end
        self._fd = os.pidfd_open(process.pid)
        # Between the look at the pid and the open it may have become another's: what is open stays what it is.
        if identity_of(process.pid) != process:
            os.close(self._fd)
            raise ProcessLookupError(process.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._ended)

    def send(self, number: int) -> None:
        """A signal, to this process and no other."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def close(self) -> None:
        """Look no longer; the process goes on."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ended(self) -> None:
        self.close()
        try:
            _, status = os.waitpid(self.process.pid, 0)
            code: int | None = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            code = None
        self._on_end(code)


def workers_of(host: str) -> dict[str, Identity]:
    """Every worker that an agent of that host name started and that runs, by its launch id."""
    found = {}
    for pid in _pids():
        fields, environment = _stat(pid), _environment(pid)
        if fields is None or fields[_STATE] in "ZX" or int(fields[_SESSION]) != pid:
            continue
        launch = environment.get(LAUNCH, b"").decode("utf-8", "replace")
        if launch and environment.get(HOST) == host.encode():
            process = identity_of(pid)
            if process is not None:
                found[launch] = process
    return found


def kill_session(pid: int, launch: str) -> int:
    """SIGKILL for all of a worker's session; returns how many there were. A stranger's session with that number is left alone."""
    killed = 0
    for member in _pids():
        fields = _stat(member)
        if fields is None or fields[_STATE] in "ZX" or int(fields[_SESSION]) != pid:
            continue
        if _environment(member).get(LAUNCH) != launch.encode():
            continue
        with suppress(OSError):
            os.kill(member, signal.SIGKILL)
            killed += 1
    return killed


def check_platform() -> str:
    """Why agents cannot work here; "" if they can."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return "an agent needs Linux (pidfd, /proc)"
    return ""


def _pids() -> Iterator[int]:
    for path in _PROC.iterdir():
        if path.name.isdigit():
            yield int(path.name)


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _environment(pid: int) -> dict[bytes, bytes]:
    try:
        raw = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    return dict(pair.partition(b"=")[::2] for pair in raw.split(b"\0") if pair)


def boot() -> str:
    """This boot of the machine."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
