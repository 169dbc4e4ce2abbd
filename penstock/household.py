"""What `up` keeps running: server, gateway, workers; started in order, started again when one dies, stopped in order.

Never here: signals and the command's end (up.py), what a process is (autoscaler/launchers/local.py).
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from autoscaler.launchers.aftermath import Aftermath
from autoscaler.launchers.base import Exit, Restarts
from autoscaler.launchers.local import LocalLauncher, LocalProcesses, role_environment
from dispatch.checks import ServerFacts, wait_until_ready
from dispatch.configuration import mask_url
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.settings import Durability, Settings
from dispatch.tasks import cancelled
from penstock import console
from penstock.failures import Failure
from penstock.probes import WorkerNews, announce_workers, base_url, until_gateway_ready
from penstock.server import ServerPlan, find_binary, free_port, plan_server, written_by

_T = TypeVar("_T")

_SERVER, _GATEWAY = "server", "gateway"
_START_S = 60.0
_PORT_TRIES = 5
_SERVER_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to keep running. `port_wished`: somebody asked for that very port."""

    settings: Settings
    workers: int
    ephemeral: bool
    port_wished: bool


class Household:
    """All processes of one `up`."""

    def __init__(self, wanted: Wanted, folder: Path, lock: int, logs: Path) -> None:
        self._wanted = wanted
        # Children's logs are files that people read: the format for eyes, unless JSON was asked for.
        log_format = "console" if wanted.settings.log.format == "auto" else wanted.settings.log.format
        self._settings = _with(wanted.settings, "log", format=log_format)
        self._folder = folder
        self._lock = lock
        self._processes = LocalProcesses(logs)
        self._launcher = LocalLauncher(self._processes, os.environ)
        self._workers = [f"worker-{i}" for i in range(1, wanted.workers + 1)]
        self._plan: ServerPlan | None = None
        self._pids: dict[str, int] = {}
        self._restarts: dict[str, Restarts] = {}
        self._given_up: set[str] = set()
        self._news = WorkerNews()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Server, then gateway, then workers: each needs the ones before. Raises Failure, PenstockError."""
        if self._wanted.port_wished:  # before a server is started for nothing
            free_port(self._settings.gateway.host, self._settings.gateway.port, tries=1)
        await self._find_server()
        await self._find_gateway()
        for name in self._workers:
            await self._start(name)
            worker = self._settings.worker
            on = f" on {worker.device}" if worker.engine == "transformers" and worker.device != "auto" else ""
            console.part(name, f"{console.model_name(self._settings)}, engine {worker.engine}{on}: starting")
        if not self._workers:
            console.part("workers", "none (--workers 0): requests wait until one comes")
        console.try_this(self._settings, base_url(self._settings), self._processes.log(_GATEWAY).parent)

    async def watch(self) -> None:
        """Start again what dies; raises Failure when something vital is beyond help."""
        url = self._settings.redis.url
        assert url is not None
        telling = asyncio.create_task(announce_workers(url, self._pids, self._news), name="announce workers")
        redis = connect(url, max_connections=2)
        aftermath = Aftermath(Queue(redis, self._settings.queue.rules()), Fleet(redis))
        try:
            async for end in self._processes.exits():
                if end.name in self._workers:
                    self._spawn(_move_on(aftermath, end), f"move on what {end.name} held")
                if self._pids.get(end.name) == end.pid:
                    self._mend(end)
        finally:
            await cancelled(telling)
            await redis.aclose()

    async def stop(self, at_once: asyncio.Event) -> None:
        """Workers drain, then the gateway's streams end, the server goes last; with `at_once` nothing is waited for."""
        await cancelled(*self._tasks)
        hurry = asyncio.create_task(self._hurry(at_once))
        settings = self._settings
        running = [name for name in self._workers if self._processes.alive(name)]
        await asyncio.gather(*(self._launcher.retire(n, drain_timeout_s=settings.worker.drain_timeout_s) for n in running))
        await self._processes.stop(_GATEWAY, timeout_s=settings.gateway.drain_timeout_s + 3)
        await self._processes.stop(_SERVER, timeout_s=_SERVER_STOP_S)
        await cancelled(hurry)

    # ---- starting

    async def _find_server(self) -> None:
        url = self._settings.redis.url
        if url:
            facts = await wait_until_ready(url, timeout_s=0, durability=self._settings.redis.durability)
            console.part(_SERVER, f"{facts.product} {facts.version} at {mask_url(url)} (not ours: it stays)")
            return
        binary = await asyncio.to_thread(find_binary, os.environ, prefer=written_by(self._folder))
        durability, lasting = self._settings.redis.durability, not self._wanted.ephemeral
        if lasting and durability is Durability.MEMORY:
            durability = Durability.AOF
        fsync = "always" if durability is Durability.AOF_ALWAYS else "everysec"
        self._settings = _with(self._settings, "redis", durability=durability)
        facts = await self._start_server(plan_server(binary, self._folder, persistent=lasting, fsync=fsync))
        assert self._plan is not None
        self._settings = _with(self._settings, "redis", url=self._plan.url)
        keeps = "keeps nothing (--ephemeral)" if self._wanted.ephemeral else f"data in {console.tilde(self._folder)}"
        console.part(_SERVER, f"{facts.product} {facts.version} on 127.0.0.1:{self._plan.port}, {keeps}")

    async def _start_server(self, plan: ServerPlan) -> ServerFacts:
        for attempt in range(_PORT_TRIES):
            self._plan = plan
            plan.write()
            await self._start(_SERVER)
            try:
                return await self._while_alive(_SERVER, wait_until_ready(plan.url, _START_S, self._settings.redis.durability))
            except Failure:
                # Somebody may have taken the port between our look and the server's bind.
                taken = any("bind" in line.lower() for line in self._processes.tail(_SERVER))
                if not taken or attempt == _PORT_TRIES - 1:
                    raise
                plan = plan_server(plan.binary, plan.folder, persistent=plan.persistent, fsync=plan.fsync)
        raise AssertionError("the last attempt returns or raises")

    async def _find_gateway(self) -> None:
        asked = self._settings.gateway
        for attempt in range(_PORT_TRIES):
            port = free_port(asked.host, asked.port, tries=1 if self._wanted.port_wished else 100)
            self._settings = _with(self._settings, "gateway", port=port)
            await self._start(_GATEWAY)
            try:
                await self._while_alive(_GATEWAY, until_gateway_ready(self._settings, _START_S))
                break
            except Failure:
                taken = any("in use" in line for line in self._processes.tail(_GATEWAY))
                if not taken or self._wanted.port_wished or attempt == _PORT_TRIES - 1:
                    raise
        moved = f" (port {asked.port} was taken)" if asked.port not in (0, port) else ""
        console.part(_GATEWAY, base_url(self._settings) + moved)

    async def _start(self, name: str) -> None:
        if name == _SERVER:
            assert self._plan is not None
            launched = await self._processes.start(name, self._plan.command, os.environ, pass_fds=[self._lock])
        elif name == _GATEWAY:
            command = [sys.executable, "-m", "penstock", "gateway"]
            launched = await self._processes.start(name, command, role_environment(os.environ, self._settings))
        else:
            launched = await self._launcher.launch(name, self._settings)
        self._pids[name] = launched.pid

    async def _while_alive(self, name: str, ready: Awaitable[_T]) -> _T:
        """Wait for `ready`, unless the process ends before: then its last words are the failure."""
        waiting = asyncio.ensure_future(ready)
        ended = asyncio.ensure_future(self._processes.gone(name))
        try:
            await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            raise self._last_words(f"The {name} did not start", name)
        finally:
            await cancelled(waiting, ended)

    # ---- watching

    def _mend(self, end: Exit) -> None:
        restarts = self._restarts.get(end.name, Restarts()).after(end)
        self._restarts[end.name] = restarts
        delay_s = restarts.delay_s(end)
        # An engine that could not start even once (no such model, no such device) will not start the next time either.
        hopeless = end.name in self._workers and end.code > 0 and end.name not in self._news.ready
        if delay_s is not None and not hopeless:
            console.event(f"{end}; starting it again in {delay_s:g} s")
            self._spawn(self._start_later(end.name, delay_s), f"restart {end.name}")
            return
        self._given_up.add(end.name)
        failure = self._last_words(f"{end}, and starting it again does not help", end.name)
        failure.why = self._news.errors.get(end.name) or failure.why
        left = set(self._workers) - self._given_up
        if end.name in (_SERVER, _GATEWAY) or not left:
            raise failure
        console.event(f"{failure.what}; {len(left)} of {len(self._workers)} workers left. {failure.to_do}")

    async def _start_later(self, name: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self._start(name)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _last_words(self, what: str, name: str) -> Failure:
        """A child of ours ends with three lines of its own; anything else is shown as it stands."""
        lines = self._processes.tail(name)
        said = [line for line in lines if line.startswith(("penstock: ", "  why: ", "  do:  "))]
        why = " ".join(line.partition(": ")[2].strip() for line in said if not line.startswith("  do:")) or " | ".join(lines[-3:])
        to_do = next((line.partition(":")[2].strip() for line in said if line.startswith("  do:")), "")
        return Failure(what, why, f"{to_do} Its log: {console.tilde(self._processes.log(name))}".strip())

    async def _hurry(self, at_once: asyncio.Event) -> None:
        await at_once.wait()
        for name in (*self._workers, _GATEWAY):
            self._processes.kill(name)


async def _move_on(aftermath: Aftermath, end: Exit) -> None:
    moved = await aftermath.of(end)
    if moved:
        console.event(f"{moved} request{'s' if moved > 1 else ''} of {end.name} moved on")


def _with(settings: Settings, section: str, **values: object) -> Settings:
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})
