"""Looks at a fleet that scales itself, several times a second, and keeps what it saw. Never here: what is made of it."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dispatch.demand import Demand
from dispatch.fleet import Fleet
from dispatch.keys import ShardKeys
from dispatch.redis_client import connect
from dispatch.scale_store import ScaleStore
from dispatch.scaling import DecisionRecord, HostReport, Orders
from dispatch.states import WorkerState
from dispatch.tasks import cancelled


@dataclass(frozen=True)
class Sample:
    """One look at one pool; `at` as time.time(). `desired`: ordered and not retiring; `ready`: those of them that say so, and
    whose process lives. `there`: every worker whose heartbeat stands, launch -> (state, pid)."""

    at: float
    pool: str
    waiting: int
    running: int
    desired: int
    ready: int
    there: dict[str, tuple[str, int]]
    epoch: int
    leader: str


@dataclass
class Watch:
    """All that was seen. `orders` and `hosts`: what was new each time, with when it was seen first."""

    pools: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    orders: list[tuple[float, Orders]] = field(default_factory=list)
    hosts: list[tuple[float, HostReport]] = field(default_factory=list)
    decisions: list[DecisionRecord] = field(default_factory=list)

    def of(self, pool: str) -> list[Sample]:
        """One pool's samples, in order."""
        return [sample for sample in self.samples if sample.pool == pool]

    def last(self, pool: str) -> Sample | None:
        """The newest."""
        return next((sample for sample in reversed(self.samples) if sample.pool == pool), None)


@contextlib.asynccontextmanager
async def watching(url: str, pools: dict[str, str], group: str = "main", every_s: float = 0.2) -> AsyncIterator[Watch]:
    """`pools`: pool -> model. At the end it has the whole decision log."""
    redis = connect(url)
    store, fleet, demand = ScaleStore(redis), Fleet(redis), Demand(redis, ShardKeys("s0"))
    watch = Watch(pools)

    async def orders() -> None:
        # More often than anybody could give two: none is missed.
        while True:
            found = await store.orders(group)
            if not watch.orders or found != watch.orders[-1][1]:
                watch.orders.append((time.time(), found))
            await asyncio.sleep(0.05)

    async def look() -> None:
        due = time.monotonic()
        while True:
            await _look(watch, store, fleet, demand, group)
            due = max(due + every_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    tasks = [asyncio.create_task(orders()), asyncio.create_task(look())]
    try:
        yield watch
    finally:
        await cancelled(*tasks)
        watch.decisions = [record async for _, record in store.decisions()][::-1]
        await redis.aclose()
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error


async def _look(watch: Watch, store: ScaleStore, fleet: Fleet, demand: Demand, group: str) -> None:
    now = time.time()
    leadership, beats = await store.leader(group), await fleet.workers()
    ordered = {each.pool: each for each in (watch.orders[-1][1].pools if watch.orders else ())}
    for report in await store.hosts():
        watch.hosts.append((now, report))
    for pool, model in watch.pools.items():
        stats = await demand.stats(model)
        orders = ordered.get(pool)
        wanted = {launch.id for launch in orders.launches} - set(orders.retiring) if orders else set()
        mine = [beat for beat in beats if beat.model == model]
        ready = {beat.launch for beat in mine if beat.state is WorkerState.READY and lives(beat.pid)}
        watch.samples.append(
            Sample(
                now,
                pool,
                stats.backlog,
                stats.running,
                len(wanted),
                len(ready & wanted),
                {beat.launch: (beat.state.value, beat.pid) for beat in mine},
                leadership.epoch,
                leadership.leader if leadership.leads else "",
            )
        )


def lives(pid: int) -> bool:
    """Whether that process runs. A heartbeat outlives a killed worker for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def reversals(samples: Sequence[Sample]) -> list[float]:
    """When the desired number turned from up to down or back. To wake from none is no turn: the work of another hour came."""
    turns: list[float] = []
    direction = 0
    for before, after in itertools.pairwise(samples):
        step = (after.desired > before.desired) - (after.desired < before.desired)
        if step and direction and step != direction and before.desired > 0:
            turns.append(after.at)
        direction = step or direction
    return turns
