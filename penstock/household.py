"""What `up` keeps running: server, gateway, workers, webhooks; started in order, again when one dies, stopped in order.

Never here: signals and the command's end (up.py), how many workers (workforce.py), what a process is
(autoscaler/launchers/children.py).
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from autoscaler.launchers.base import Exit, Restarts
from autoscaler.launchers.children import LocalProcesses
from autoscaler.launchers.local import role_environment
from dispatch.checks import ServerFacts, wait_until_ready
from dispatch.configuration import mask_url
from dispatch.settings import Durability, Settings
from dispatch.tasks import cancelled
from penstock import console
from penstock.failures import Failure
from penstock.probes import base_url, until_gateway_ready
from penstock.server import ServerPlan, find_binary, free_port, plan_server, written_by
from penstock.workforce import Workforce

_T = TypeVar("_T")

_SERVER, _GATEWAY, _WEBHOOKS = "server", "gateway", "webhooks"
_MODULES = {_GATEWAY: ["penstock", "gateway"], _WEBHOOKS: ["autoscaler.webhooks"]}
_START_S = 60.0
_PORT_TRIES = 5
_SERVER_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to keep running. `workers`: the least and most, None for the default. `port_wished`: somebody asked for that port."""

    settings: Settings
    workers: tuple[int, int] | None
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
        self._logs = logs
        self._workforce: Workforce | None = None
        self._plan: ServerPlan | None = None
        self._pids: dict[str, int] = {}
        self._restarts: dict[str, Restarts] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Server, then gateway, then workers: each needs the ones before. Raises Failure, PenstockError."""
        if self._wanted.port_wished:  # before a server is started for nothing
            free_port(self._settings.gateway.host, self._settings.gateway.port, tries=1)
        await self._find_server()
        await self._find_gateway()
        self._workforce = Workforce(self._settings, self._wanted.workers, self._logs, ours=self._plan is not None)
        self._workforce.introduce()
        if self._settings.webhook.secret is not None:
            await self._start(_WEBHOOKS)
            console.part(_WEBHOOKS, "delivered by a process of their own")
        console.try_this(self._settings, base_url(self._settings), self._processes.log(_GATEWAY).parent)

    async def watch(self) -> None:
        """Start again what dies; raises Failure when something vital is beyond help."""
        assert self._workforce is not None
        tasks = [asyncio.ensure_future(role) for role in (self._workforce.run(), self._watch_the_vital())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await cancelled(*tasks)

    async def stop(self, at_once: asyncio.Event) -> None:
        """Workers drain, then the gateway's streams end, the server goes last; with `at_once` nothing is waited for."""
        await cancelled(*self._tasks)
        hurry = asyncio.create_task(self._hurry(at_once))
        if self._workforce is not None:
            await self._workforce.stop()
        await self._processes.stop(_WEBHOOKS, timeout_s=_SERVER_STOP_S)
        await self._processes.stop(_GATEWAY, timeout_s=self._settings.gateway.drain_timeout_s + 3)
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
        else:
            command = [sys.executable, "-m", *_MODULES[name]]
            launched = await self._processes.start(name, command, role_environment(os.environ, self._settings))
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

    async def _watch_the_vital(self) -> None:
        async for end in self._processes.exits():
            if self._pids.get(end.name) == end.pid:
                self._mend(end)

    def _mend(self, end: Exit) -> None:
        restarts = self._restarts.get(end.name, Restarts()).after(end)
        self._restarts[end.name] = restarts
        delay_s = restarts.delay_s(end)
        if delay_s is None:
            raise self._last_words(f"{end}, and starting it again does not help", end.name)
        console.event(f"{end}; starting it again in {delay_s:g} s")
        self._spawn(self._start_later(end.name, delay_s), f"restart {end.name}")

    async def _start_later(self, name: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self._start(name)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _last_words(self, what: str, name: str) -> Failure:
        return console.last_words(what, self._processes.tail(name), self._processes.log(name))

    async def _hurry(self, at_once: asyncio.Event) -> None:
        await at_once.wait()
        if self._workforce is not None:
            self._workforce.kill()
        for name in (_WEBHOOKS, _GATEWAY):
            self._processes.kill(name)


def _with(settings: Settings, section: str, **values: object) -> Settings:
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})
