"""The autoscaler as a process: ticks until it is told to end, sweeps like a gateway, and tells of its health.

Never here: what a tick does (reconcile.py), what `up` makes of it (penstock/workforce.py).
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import uvloop

from autoscaler.applying import Hands
from autoscaler.launchers.base import Launcher
from autoscaler.launchers.registry import Launchers, build
from autoscaler.pools import pools_of
from autoscaler.reconcile import Reconciler
from dispatch.demand import Demand
from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT, is_unreachable
from dispatch.fleet import Fleet
from dispatch.keys import ShardKeys
from dispatch.processes import die_with_parent
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.scale_store import ScaleStore
from dispatch.scaling import Action, DecisionRecord, LauncherName
from dispatch.settings import Settings
from dispatch.tasks import cancelled

_log = logging.getLogger("penstock.autoscaler")
_SWEEP_EVERY_S = 0.25
_RENEWALS = 3
_AGAIN_S = 1.0
_COMPLAIN_EVERY_S = 30.0


class Ticking:
    """Ticks for ever. `ticked_at` is when the last tick ended (monotonic), well or not."""

    def __init__(self, reconciler: Reconciler, tick_s: float, on_records: Callable[[Sequence[DecisionRecord]], None]) -> None:
        self.reconciler = reconciler
        self.ticked_at = time.monotonic()
        self._tick_s = tick_s
        self._on_records = on_records
        self._complained_at = 0.0

    @property
    def leads(self) -> bool:
        """Whether it led at the last tick."""
        return self.reconciler.leads

    async def run(self) -> None:
        """Redis being away is noted and survived: nothing is decided meanwhile, and what runs goes on."""
        due = time.monotonic()
        while True:
            try:
                self._on_records(await self.reconciler.tick())
            except STORE_FAULT as error:
                self._complain("Redis does not answer", type(error).__name__)
            except PenstockError as error:
                self._complain("what is stored cannot be used", error.message)
            except Exception:
                _log.exception("meet a bug in a tick")
            self.ticked_at = time.monotonic()
            due = max(due + self._tick_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def keep(self) -> None:
        """Keep the lease for ever, beside ticks that take long."""
        while True:
            await asyncio.sleep(self.reconciler.lease_s / _RENEWALS)
            with suppress(STORE_FAULT):  # the tick complains
                await self.reconciler.keep()

    def _complain(self, what: str, why: str) -> None:
        if time.monotonic() - self._complained_at >= _COMPLAIN_EVERY_S:
            self._complained_at = time.monotonic()
            _log.warning("cannot decide: %s", what, extra={"error": why})


def log_records(records: Sequence[DecisionRecord]) -> None:
    """One line a decision that is worth one."""
    for record in records:
        level = logging.WARNING if record.action is Action.BLOCKED else logging.INFO
        fields = {
            "pool": record.pool,
            "from": record.from_workers,
            "to": record.to_workers,
            "policy": record.policy,
            "reason": record.reason,
            "limits": ", ".join(record.limits),
            "repeated": record.repeated,
            "dry_run": record.dry_run,
        }
        _log.log(level, record.action.value, extra=fields)


def serve(settings: Settings) -> int:
    """Be an autoscaler until SIGTERM or SIGINT. Blocks; returns the exit code. Raises PenstockError for unusable settings."""
    die_with_parent()
    if not settings.autoscaler.pools:
        raise PenstockError(
            "bad_setting",
            "There is no pool to scale.",
            hint="Name one in penstock.toml: [autoscaler.pools.NAME] with model and max.",
            param="autoscaler.pools",
        )
    return uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    from autoscaler.health import Health  # brings a web server: only where somebody asks for health

    assert settings.redis.url is not None
    redis, sweeping = connect(settings.redis.url), connect(settings.redis.url, max_connections=2)
    store, fleet = ScaleStore(redis), Fleet(redis)
    launchers = Launchers(lambda name: _launcher(name, settings, store, fleet))
    for name in {pool.launcher or settings.autoscaler.launcher for pool in settings.autoscaler.pools.values()}:
        _ = launchers[name]  # what it lacks is told at the start
    reconciler = reconciler_for(settings, store, Demand(redis, ShardKeys("s0")), fleet, launchers)
    ticking = Ticking(reconciler, settings.autoscaler.tick_s, log_records)
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    queue = Queue(sweeping, settings.queue.rules(), wait_replica_ms=settings.redis.wait_replica_ms)
    roles: list[Callable[[], Awaitable[None]]] = [ticking.run, ticking.keep, lambda: _sweep(queue)]
    if settings.autoscaler.port is not None:
        roles.append(Health(ticking, port=settings.autoscaler.port, tick_s=settings.autoscaler.tick_s).run)
    tasks = [asyncio.ensure_future(role()) for role in roles]
    try:
        _log.info("Started the autoscaler", extra={"group": settings.autoscaler.group, "pools": len(settings.autoscaler.pools)})
        await asyncio.wait({*tasks, asyncio.ensure_future(ending.wait())}, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
        return 0
    finally:
        await cancelled(*tasks)
        with suppress(STORE_FAULT):  # the lease ends by itself
            await reconciler.resign()
        await launchers.close()
        await redis.aclose()
        await sweeping.aclose()


def reconciler_for(settings: Settings, store: ScaleStore, demand: Demand, fleet: Fleet, launchers: Hands) -> Reconciler:
    """The reconciler these settings ask for."""
    asked = settings.autoscaler
    return Reconciler(
        asked.group,
        f"as-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}",
        store,
        demand,
        fleet,
        launchers,
        lambda overrides, left: pools_of(settings, overrides, left),
        lease_ms=int(asked.lease_s * 1000),
        keep=asked.history,
        dry_run=asked.dry_run,
    )


def _launcher(name: LauncherName, settings: Settings, store: ScaleStore, fleet: Fleet) -> Launcher:
    if name is LauncherName.AGENTS:
        from autoscaler.launchers.agents import AgentsLauncher

        return AgentsLauncher(settings, store, fleet)
    return build(name, settings)


async def _sweep(queue: Queue) -> None:
    """Move every request whose time has come; harmless beside gateways."""
    while True:
        try:
            await queue.sweep()
        except STORE_FAULT as error:
            if not is_unreachable(error):
                _log.warning("Cannot sweep", extra={"error": type(error).__name__})
            await asyncio.sleep(_AGAIN_S)
        await asyncio.sleep(_SWEEP_EVERY_S)
