"""The workers of `up`: as many as the load asks for, started and ended by an autoscaler in this process.

Never here: server and gateway (household.py), what is decided (autoscaler/policy.py).
"""

import asyncio
import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from autoscaler.daemon import Ticking, log_records, reconciler_for
from autoscaler.launchers.aftermath import Aftermath
from autoscaler.launchers.base import Exit
from autoscaler.launchers.children import LocalProcesses
from autoscaler.launchers.local import LocalLauncher
from dispatch.demand import Demand
from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.keys import ShardKeys
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.scale_store import ScaleStore
from dispatch.scaling import Action, DecisionRecord, LauncherName, LaunchState
from dispatch.settings import Settings
from dispatch.settings_scale import PoolSettings
from dispatch.tasks import cancelled
from penstock import console
from penstock.failures import USAGE, Failure
from penstock.probes import WorkerNews, announce_workers

_LOOK_S = 0.2
_BY_DEFAULT = (0, 2)
_BY_DEFAULT_ON_A_GPU = (0, 1)
_POOL_NAME = re.compile(r"[^A-Za-z0-9._@-]")


class Workforce:
    """All workers of one `up`. `bounds` None: the default. `ours`: the server is this `up`'s own."""

    def __init__(self, settings: Settings, bounds: tuple[int, int] | None, logs: Path, *, ours: bool) -> None:
        url = settings.redis.url
        assert url is not None
        self._settings = _with_pools(settings, bounds, ours=ours)
        self._news = WorkerNews()
        self._processes = LocalProcesses(logs)
        self._launcher = LocalLauncher(
            self._processes, os.environ, self._settings, tell=console.event, was_ready=lambda name: name in self._news.ready
        )
        self._url = url
        self._redis = connect(url, max_connections=8)
        fleet = Fleet(self._redis)
        self._aftermath = Aftermath(Queue(self._redis, settings.queue.rules()), fleet)
        self._reconciler = reconciler_for(
            self._settings,
            ScaleStore(self._redis),
            Demand(self._redis, ShardKeys("s0")),
            fleet,
            {LauncherName.LOCAL: self._launcher},
        )
        self._moving: set[asyncio.Task[None]] = set()
        self._told_standby = False

    def introduce(self) -> None:
        """The lines about workers in what `up` prints first."""
        worker = self._settings.worker
        on = f" on {worker.device}" if worker.engine == "transformers" and worker.device != "auto" else ""
        for pool in self._settings.autoscaler.pools.values():
            model = pool.worker.get("served_name") or pool.model or console.model_name(self._settings)
            engine = pool.worker.get("engine", worker.engine)
            if not pool.max:
                console.part("workers", "none (--workers 0): requests wait until one comes")
                continue
            number = f"{pool.max}" if pool.min == pool.max else f"{pool.min} to {pool.max} by load"
            start = max(pool.min, pool.initial)
            starting = f": {start} starting" if start else ": the first request starts one"
            console.part("workers", f"{number}, {model}, engine {engine}{on}{starting}")

    async def run(self) -> None:
        """Decide, start, watch. Raises Failure when no worker can be started."""
        ticking = Ticking(self._reconciler, self._settings.autoscaler.tick_s, self._tell)
        roles = (
            ticking.run(),
            ticking.keep(),
            self._launcher.run(self._ended),
            announce_workers(self._url, lambda: self._launcher.pids, self._news),
            self._until_hopeless(),
        )
        tasks = [asyncio.ensure_future(role) for role in roles]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await cancelled(*tasks)

    async def stop(self) -> None:
        """Workers drain; nobody decides any more."""
        await self._launcher.close()
        await cancelled(*self._moving)
        with suppress(STORE_FAULT):  # the lease ends by itself
            await self._reconciler.resign()
        await self._redis.aclose()

    def kill(self) -> None:
        """Now."""
        self._launcher.kill()

    # ---- watching

    def _tell(self, records: Sequence[DecisionRecord]) -> None:
        log_records(records)
        if not self._reconciler.leads and not self._told_standby and self._reconciler.leadership is not None:
            self._told_standby = True
            console.event(f"standing by: {self._reconciler.leadership.leader} scales the workers here")
        for record in records:
            if record.action is Action.BLOCKED:
                console.event(f"{record.pool} needs {record.to_workers} workers, has {record.from_workers}: {record.reason}")
            elif record.action in (Action.UP, Action.DOWN):
                why = "; ".join((record.reason, *record.limits))
                console.event(f"{record.pool}: {record.from_workers} -> {record.to_workers} workers ({why})")

    def _ended(self, end: Exit) -> None:
        task = asyncio.create_task(self._move_on(end), name=f"move on what {end.name} held")
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)

    async def _move_on(self, end: Exit) -> None:
        moved = await self._aftermath.of(end)
        if moved:
            console.event(f"{moved} request{'s' if moved > 1 else ''} of {end.name} moved on")

    async def _until_hopeless(self) -> None:
        """Raises Failure when all that were ordered cannot start, and no start ever went well."""
        while True:
            await asyncio.sleep(_LOOK_S)
            reports = (await self._launcher.reports()).values()
            lost = [report for report in reports if report.state is LaunchState.CRASH_LOOP]
            if lost and len(lost) == len(reports) and not self._news.ready:
                name = self._launcher.name_of(lost[0].id)
                raise console.last_words(
                    f"{lost[0].error}, and starting it again does not help",
                    self._processes.tail(name),
                    self._processes.log(name),
                    why=self._news.errors.get(name, ""),
                )


def _with_pools(settings: Settings, bounds: tuple[int, int] | None, *, ours: bool) -> Settings:
    """Settings whose autoscaler scales what this `up` was told to: its one model, or the pools that were configured."""
    asked = settings.autoscaler
    host = _POOL_NAME.sub("-", socket.gethostname())[:30]
    # Where a launcher was named for all pools, those that name none are that one's.
    here = (
        (LauncherName.LOCAL,)
        if "launcher" in asked.model_fields_set and asked.launcher is not LauncherName.LOCAL
        else (None, LauncherName.LOCAL)
    )
    pools = {f"{name}{'' if ours else f'@{host}'}": pool for name, pool in asked.pools.items() if pool.launcher in here}
    if pools and bounds is not None:
        named = ", ".join(sorted(pools))
        raise Failure("--workers does not go with pools", f"the settings have {named}", "Give each its min and max there", USAGE)
    if not pools:
        model = console.model_name(settings)
        least, most = bounds or _default_bounds(settings)
        # On a server that others use, too, another host's `up` may scale the same model.
        name = _POOL_NAME.sub("-", model)[:30] + ("" if ours else f"@{host}")
        served = {"served_name": model}
        pools = {name: PoolSettings(min=least, max=most, initial=min(1, most), worker=served)}
    changed = {"group": "up" if ours else f"up@{host}", "launcher": LauncherName.LOCAL, "pools": pools}
    return settings.model_copy(update={"autoscaler": asked.model_copy(update=changed)})


def _default_bounds(settings: Settings) -> tuple[int, int]:
    on_gpu = (
        settings.worker.engine == "transformers" and settings.worker.device != "cpu" and any(Path("/dev").glob("nvidia[0-9]*"))
    )
    return _BY_DEFAULT_ON_A_GPU if on_gpu else _BY_DEFAULT
