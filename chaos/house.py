"""The processes of a run: gateways, workers, and the supervisor that starts again what ended.

For most roles the supervisor calls nothing: it knows no more than a process manager does. The `launched` workers have what the
product's launcher has, too: their exits are told to Redis at once. Never here: faults, load.
"""

import asyncio
import logging
import os
import random
import re
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from autoscaler.launchers.aftermath import Aftermath
from autoscaler.launchers.base import Exit
from chaos.history import Recorder
from chaos.roads import Road
from chaos.servers import SERVICE, Server
from dispatch.fleet import Fleet
from dispatch.processes import with_parent
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules

_log = logging.getLogger("chaos")
_ROOT = Path(__file__).resolve().parent.parent
_RESTART_S, _LONGEST_RESTART_S, _SHORT_LIFE_S = 0.3, 3.0, 5.0


@dataclass
class Role:
    """One slot: a gateway or worker that is started again whenever it ends."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    road: Road
    url: str = ""
    engine: str = ""
    launched: bool = False
    process: asyncio.subprocess.Process | None = None
    told_to_end: bool = False
    wanted: bool = True
    supervisor: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """The living process's id, or 0."""
        return self.process.pid if self.process is not None and self.process.returncode is None else 0

    def signal(self, number: int) -> int:
        """A signal, if it lives; returns the pid it went to, or 0."""
        pid = self.pid
        if pid:
            self.told_to_end = self.told_to_end or number in (signal.SIGTERM, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    def children(self) -> list[int]:
        """Pids of its child processes: engines."""
        try:
            return [int(c) for c in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()] if self.pid else []
        except OSError:
            return []


class House:
    """All roles of a run."""

    def __init__(self, folder: Path, server: Server, rules: QueueRules, record: Recorder, seed: int) -> None:
        self.roles: dict[str, Role] = {}
        self._folder = folder
        self._server = server
        # Where a launcher runs is another machine than a worker's: no fault of a worker's wire is its own.
        self._redis = connect(server.url(), max_connections=4)
        self._aftermath = Aftermath(Queue(self._redis, rules, shard="s0"), Fleet(self._redis))
        self._telling: set[asyncio.Task[int]] = set()
        self._record = record
        self._rng = random.Random(f"{seed} proxies")

    @property
    def gateways(self) -> list[Role]:
        """The gateways, by name."""
        return [r for r in self.roles.values() if r.url]

    @property
    def workers(self) -> list[Role]:
        """The workers, by name."""
        return [r for r in self.roles.values() if not r.url]

    async def gateway(self, name: str, port: int, environment: Mapping[str, str]) -> Role:
        """Add a gateway."""
        return await self._add(name, ("gateway", "--port", str(port)), environment, url=f"http://127.0.0.1:{port}")

    async def worker(
        self, name: str, engine: str, flags: tuple[str, ...], environment: Mapping[str, str], *, launched: bool = False
    ) -> Role:
        """Add a worker."""
        return await self._add(name, ("worker", "--engine", engine, *flags), environment, engine=engine, launched=launched)

    def incarnations(self, role: Role) -> list[str]:
        """Every id under which that worker was known, as its log has them."""
        try:
            return sorted({found.decode() for found in _WORKER_ID.findall(role.log.read_bytes())})
        except OSError:
            return []

    async def close(self) -> None:
        """Kill everything."""
        for role in self.roles.values():
            role.wanted = False
            if role.supervisor is not None:
                role.supervisor.cancel()
            role.signal(signal.SIGKILL)
        for role in self.roles.values():
            if role.process is not None:
                await role.process.wait()
            await role.road.close()
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)
        await self._redis.aclose()

    async def _add(
        self,
        name: str,
        command: tuple[str, ...],
        environment: Mapping[str, str],
        *,
        url: str = "",
        engine: str = "",
        launched: bool = False,
    ) -> Role:
        ports = {n: p.port for n, p in self._server.processes.items()}
        sentinels = [port for n, port in ports.items() if n.startswith("sentinel")]
        road = Road([port for n, port in ports.items() if n.startswith("server")], sentinels, SERVICE, self._rng)
        await road.start()
        command = (*command, "--redis", road.url)
        role = Role(name, command, environment, self._folder / f"{name}.log", road, url, engine, launched)
        self.roles[name] = role
        role.supervisor = asyncio.create_task(self._supervise(role), name=f"supervise {name}")
        return role

    def _told(self, task: asyncio.Task[int]) -> None:
        self._telling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("an exit could not be told", exc_info=error)

    async def _supervise(self, role: Role) -> None:
        pause_s = _RESTART_S
        while role.wanted:
            started = time.monotonic()
            with role.log.open("ab") as log:
                role.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "penstock",
                    *role.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=with_parent(_environment(role.environment)),
                    cwd=self._folder,
                    start_new_session=True,
                )
            role.told_to_end = False
            self._record("process", role=role.name, what="start", pid=role.process.pid)
            code = await role.process.wait()
            self._record("process", role=role.name, what="exit", pid=role.process.pid, code=code, told=role.told_to_end)
            lived_s = time.monotonic() - started
            if role.launched and role.wanted:
                telling = asyncio.create_task(self._aftermath.of(Exit(role.name, role.process.pid, code, lived_s)))
                self._telling.add(telling)
                telling.add_done_callback(self._told)
            pause_s = min(pause_s * 2, _LONGEST_RESTART_S) if lived_s < _SHORT_LIFE_S and not role.told_to_end else _RESTART_S
            await asyncio.sleep(pause_s)


_WORKER_ID = re.compile(rb'worker_id"\s*:\s*"(w-[0-9a-f]{8})"')


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours without its own settings; the tree this harness stands in comes first, also in a copy of it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    path = [str(_ROOT), kept.get("PYTHONPATH", "")]
    if "CHAOS_CLOCK_SKEW_S" in extra:
        path.insert(0, str(_ROOT / "chaos" / "skew"))
    return {**kept, "PYTHONPATH": os.pathsep.join(p for p in path if p), **extra}
