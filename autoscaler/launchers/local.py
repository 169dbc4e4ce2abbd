"""The launcher whose workers are children of this process: they die with it. What `up` uses.

Never here: how many there should be (policy.py), which are told to go (arrange.py).
"""

import asyncio
import itertools
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoscaler.launchers.base import Exit, Restarts
from autoscaler.launchers.children import LocalProcesses
from dispatch.configuration import as_environment, variable, without_settings
from dispatch.scaling import Launch, LaunchReport, LaunchState, Orders
from dispatch.settings import Settings
from dispatch.tasks import cancelled

_RELEASE_S = 3.0
"""After a drain's time is over: for the release of what is left."""
_BLOCKED_S = 300.0
"""How long a worker that cannot start keeps others like it from being tried."""


@dataclass(slots=True)
class _Worker:
    """One ordered worker. `name` is its log's and what people read; the lowest free number."""

    launch: Launch
    name: str
    since_ms: int
    state: LaunchState = LaunchState.STARTING
    pid: int = 0
    exits: int = 0
    error: str = ""
    last_words: tuple[str, ...] = ()
    restarts: Restarts = field(default_factory=Restarts)
    starting: asyncio.Task[None] | None = None


class LocalLauncher:
    """Workers as child processes of this one. `tell` hears what people should read. `was_ready` knows, by name, who ever was."""

    names_itself = False
    dies_with_us = True

    def __init__(
        self,
        processes: LocalProcesses,
        environment: Mapping[str, str],
        settings: Settings,
        *,
        tell: Callable[[str], None] = lambda text: None,
        was_ready: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self._processes = processes
        self._environment = environment
        self._settings = settings
        self._tell = tell
        self._was_ready = was_ready
        self._epoch = 0
        self._workers: dict[str, _Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._blocked: dict[str, tuple[float, str]] = {}  # pool -> until when (monotonic), and why

    @property
    def pids(self) -> dict[str, int]:
        """The living, by name."""
        return {worker.name: worker.pid for worker in self._workers.values() if worker.pid}

    def name_of(self, launch: str) -> str:
        """What people read of it."""
        return self._workers[launch].name

    async def run(self, on_exit: Callable[[Exit], None]) -> None:
        """Watch the children for ever: start again who died. `on_exit` hears of every end first."""
        async for end in self._processes.exits():
            on_exit(end)
            worker = next((w for w in self._workers.values() if w.name == end.name and w.pid == end.pid), None)
            if worker is not None:
                self._ended(worker, end)

    async def apply(self, orders: Orders) -> None:
        """See the port."""
        if orders.epoch < self._epoch:
            return
        self._epoch = orders.epoch
        ordered = orders.launches()
        for launch in ordered.values():
            if launch.id not in self._workers:
                worker = self._workers[launch.id] = _Worker(launch, self._free_name(), _now_ms())
                worker.starting = self._spawn(self._start(worker))
        for name, worker in list(self._workers.items()):
            if name not in ordered and worker.state is not LaunchState.STOPPING:
                worker.state = LaunchState.STOPPING
                self._spawn(self._end(worker))

    async def reports(self) -> Mapping[str, LaunchReport]:
        """See the port."""
        return {name: self._report(worker) for name, worker in self._workers.items()}

    async def unplaceable(self, pool: str, need_bytes: int) -> str:
        """Only what failed before is known not to work now."""
        until, why = self._blocked.get(pool, (0.0, ""))
        return why if time.monotonic() < until else ""

    async def close(self) -> None:
        """End all, each with its drain."""
        await cancelled(*self._tasks)
        timeout_s = self._settings.worker.drain_timeout_s + _RELEASE_S
        await asyncio.gather(*(self._processes.stop(name, timeout_s=timeout_s) for name in self.pids))

    def kill(self) -> None:
        """Now."""
        for name in self.pids:
            self._processes.kill(name)

    async def _start(self, worker: _Worker) -> None:
        environment = worker_environment(self._environment, self._settings, worker.launch)
        try:
            launched = await self._processes.start(worker.name, [sys.executable, "-m", "penstock", "worker"], environment)
        except (OSError, ValueError) as error:  # ValueError: what was ordered cannot stand in an environment
            worker.state, worker.error = LaunchState.CRASH_LOOP, f"it cannot be started: {error}"
            self._blocked[worker.launch.pool] = (time.monotonic() + _BLOCKED_S, worker.error)
            return
        worker.pid, worker.since_ms = launched.pid, _now_ms()
        if worker.state is LaunchState.STARTING:
            worker.state = LaunchState.RUNNING

    async def _start_later(self, worker: _Worker, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if worker.state is LaunchState.BACKOFF:
            worker.state = LaunchState.STARTING
            worker.starting = self._spawn(self._start(worker))

    async def _end(self, worker: _Worker) -> None:
        """A worker that drained has nothing left; one that did not gets its own drain's time."""
        if worker.starting is not None:  # its process may just be made
            await asyncio.wait({worker.starting})
        await self._processes.stop(worker.name, timeout_s=self._settings.worker.drain_timeout_s + _RELEASE_S)
        self._workers.pop(worker.launch.id, None)

    def _ended(self, worker: _Worker, end: Exit) -> None:
        worker.pid = 0
        if worker.state is LaunchState.STOPPING:
            return
        worker.exits += 1
        worker.error, worker.last_words = str(end), tuple(self._processes.tail(worker.name))
        worker.restarts = worker.restarts.after(end)
        delay_s = worker.restarts.delay_s(end)
        # An engine that could not start even once (no such model, no such device) will not start the next time either.
        if delay_s is None or (end.code > 0 and not self._was_ready(worker.name)):
            worker.state = LaunchState.CRASH_LOOP
            self._blocked[worker.launch.pool] = (time.monotonic() + _BLOCKED_S, f"{end}, and starting it again does not help")
            return
        worker.state = LaunchState.BACKOFF
        self._tell(f"{end}; starting it again in {delay_s:g} s")
        self._spawn(self._start_later(worker, delay_s))

    def _report(self, worker: _Worker) -> LaunchReport:
        return LaunchReport(
            id=worker.launch.id,
            pool=worker.launch.pool,
            state=worker.state,
            host=socket.gethostname(),
            pid=worker.pid,
            since_ms=worker.since_ms,
            exits=worker.exits,
            error=worker.error,
            last_words=worker.last_words,
        )

    def _free_name(self) -> str:
        taken = {worker.name for worker in self._workers.values()}
        return next(name for n in itertools.count(1) if (name := f"worker-{n}") not in taken)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def worker_environment(environment: Mapping[str, str], settings: Settings, launch: Launch) -> dict[str, str]:
    """An environment in which `penstock worker` becomes that very launch."""
    own = {"pool": launch.pool, "launch": launch.id}
    ordered = {variable(f"worker.{name}"): value for name, value in {**launch.worker, **own}.items()}
    return {**role_environment(environment, settings), **ordered}


def role_environment(environment: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """An environment in which a role loads exactly these settings, whatever was set around it."""
    return {**without_settings(environment), **as_environment(settings)}


def _now_ms() -> int:
    return int(time.time() * 1000)
