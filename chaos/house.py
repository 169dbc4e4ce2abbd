"""The processes of a run: gateways, workers, autoscalers, agents, and the supervisor that starts again what ended.

For most roles the supervisor calls nothing: it knows no more than a process manager does. The `launched` workers have what the
product's launcher has, too: their exits are told to Redis at once. Workers that agents start are found, not started (pool.py).
Never here: faults, load.
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

from autoscaler.agent.processes import Identity
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
ROOT = Path(__file__).resolve().parent.parent
_RESTART_S, _LONGEST_RESTART_S, _SHORT_LIFE_S = 0.3, 3.0, 5.0


GATEWAY, WORKER, AUTOSCALER, AGENT = "gateway", "worker", "autoscaler", "agent"


@dataclass
class Role:
    """One slot: a process that is started again whenever it ends. `found`: a pool's worker, whose agent does that; `host` is
    the agent's role, whose road it shares."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    road: Road
    url: str = ""
    engine: str = ""
    launched: bool = False
    kind: str = WORKER
    host: str = ""
    found: Identity | None = None
    process: asyncio.subprocess.Process | None = None
    told_to_end: bool = False
    wanted: bool = True
    supervisor: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """The living process's id, or 0."""
        if self.found is not None:
            return self.found.pid if self.found.lives() else 0
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
        self.pool: dict[str, Role] = {}
        """Workers that agents started, by launch id; also those that are gone."""
        self.leading = ""
        """Which autoscaler led when somebody looked last."""
        self.folder = folder
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
        return self.of(GATEWAY)

    @property
    def workers(self) -> list[Role]:
        """The workers, by name, those of agents after the others."""
        return [*self.of(WORKER), *self.pool.values()]

    @property
    def on_roads(self) -> list[Role]:
        """Everybody with a way to Redis of its own."""
        return [*self.gateways, *self.of(WORKER), *self.of(AUTOSCALER), *self.of(AGENT)]

    def of(self, kind: str) -> list[Role]:
        """The supervised roles of a kind."""
        return [r for r in self.roles.values() if r.kind == kind]

    def role(self, name: str) -> Role:
        """A role by its name, or by its launch id."""
        return self.roles.get(name) or self.pool[name]

    async def gateway(self, name: str, port: int, environment: Mapping[str, str]) -> Role:
        """Add a gateway."""
        return await self._add(name, ("gateway", "--port", str(port)), environment, url=f"http://127.0.0.1:{port}", kind=GATEWAY)

    async def worker(
        self, name: str, engine: str, flags: tuple[str, ...], environment: Mapping[str, str], *, launched: bool = False
    ) -> Role:
        """Add a worker."""
        return await self._add(name, ("worker", "--engine", engine, *flags), environment, engine=engine, launched=launched)

    async def autoscaler(self, name: str, environment: Mapping[str, str]) -> Role:
        """Add an autoscaler."""
        return await self._add(name, ("autoscaler",), environment, kind=AUTOSCALER)

    async def agent(self, name: str, environment: Mapping[str, str]) -> Role:
        """Add an agent."""
        return await self._add(name, ("agent",), environment, kind=AGENT)

    async def end(self, role: Role, patience_s: float) -> int | None:
        """SIGTERM, and never again; its exit code, None if it did not end."""
        role.wanted = False
        role.signal(signal.SIGTERM)
        if role.process is None:
            return 0
        try:
            return await asyncio.wait_for(role.process.wait(), patience_s)
        except TimeoutError:
            return None

    async def once(self, role: Role, *flags: str, patience_s: float) -> int | None:
        """A role's verb with more flags, until it ends: its exit code; None if it was killed for taking too long."""
        with role.log.open("ab") as log:
            process = await self._spawn(role, log.fileno(), *flags)
        try:
            return await asyncio.wait_for(process.wait(), patience_s)
        except TimeoutError:
            process.kill()
            await process.wait()
            return None

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
        kind: str = WORKER,
    ) -> Role:
        ports = {n: p.port for n, p in self._server.processes.items()}
        sentinels = [port for n, port in ports.items() if n.startswith("sentinel")]
        road = Road([port for n, port in ports.items() if n.startswith("server")], sentinels, SERVICE, self._rng)
        await road.start()
        command = (*command, "--redis", road.url)
        role = Role(name, command, environment, self.folder / f"{name}.log", road, url, engine, launched, kind)
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
                role.process = await self._spawn(role, log.fileno())
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

    async def _spawn(self, role: Role, log: int, *flags: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "penstock",
            *role.command,
            *flags,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=with_parent(_environment(role.environment)),
            cwd=self.folder,
            start_new_session=True,
        )


_WORKER_ID = re.compile(rb'worker_id"\s*:\s*"(w-[0-9a-f]{8})"')


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours without its own settings; the tree this harness stands in comes first, also in a copy of it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    path = [str(ROOT), kept.get("PYTHONPATH", "")]
    if "CHAOS_CLOCK_SKEW_S" in extra:
        path.insert(0, str(ROOT / "chaos" / "skew"))
    return {**kept, "PYTHONPATH": os.pathsep.join(p for p in path if p), **extra}
