"""Where launches go, and what the launcher says of hosts that are gone, full or crashing."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from autoscaler.jobs.guarded import GuardedQueue
from autoscaler.jobs.line import host_queue
from autoscaler.launchers.agents import AgentsLauncher
from autoscaler.launchers.placing import place, why_not
from dispatch.configuration import load_settings
from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.redis_client import connect_blocking
from dispatch.reports import GpuStatus, Heartbeat
from dispatch.scale_store import ScaleStore
from dispatch.scaling import HostReport, Launch, LaunchReport, LaunchState, Orders, PoolOrders
from dispatch.states import WorkerState
from tests.autoscaler.agents import Leader, until

GIB = 1 << 30
NOW = 1_000_000


def host(name: str, *free_gib: float, most: int = -1, launches: tuple[LaunchReport, ...] = ()) -> HostReport:
    gpus = tuple(GpuStatus(f"{name}-{n}", "A10", 24 * GIB, int(free * GIB)) for n, free in enumerate(free_gib))
    return HostReport(name, f"{name}-1", NOW, gpus, 100 * GIB, launches=launches, most_workers=most)


def orders(*launches: Launch) -> Orders:
    return Orders("main", 1, (PoolOrders("p", "demo", launches),))


def wanted(count: int, gib: float = 0) -> tuple[Launch, ...]:
    return tuple(Launch(f"l-{n}", "p", need_bytes=int(gib * GIB)) for n in range(count))


def hosts_of(found: Orders) -> list[str]:
    return [launch.host for launch in found.launches().values()]


def test_the_most_free_memory_takes_the_next() -> None:
    found = place(orders(*wanted(5, 10)), [host("a", 24), host("b", 20, 8), host("c", 9)])
    assert hosts_of(found) == ["a", "b", "a", "b", ""]


def test_what_fits_nowhere_stays_without_a_host() -> None:
    found = place(orders(*wanted(3, 16)), [host("a", 24), host("b", 20)])
    assert hosts_of(found) == ["a", "b", ""]
    assert "24" not in why_not(found, [host("c", 80)], 16 * GIB)
    assert "a has" in why_not(found, [host("a", 24), host("b", 20)], 16 * GIB)
    assert why_not(found, [host("a", 24), host("c", 80)], 16 * GIB) == ""
    assert "no agent" in why_not(found, [], 0)


def test_who_is_placed_stays_where_it_is() -> None:
    stuck = Launch("l-0", "p", host="gone")
    here = Launch("l-1", "p", host="a")
    assert hosts_of(place(orders(stuck, here), [host("a", 1), host("b", 24)])) == ["gone", "a"]


def test_where_the_need_is_not_known_each_gpu_takes_one() -> None:
    assert hosts_of(place(orders(*wanted(4)), [host("a", 24, 24), host("b", 20)])).count("a") == 2
    assert hosts_of(place(orders(*wanted(4)), [host("a", 24, 24), host("b", 20)])).count("") == 1


def test_a_host_without_gpus_takes_as_many_as_it_says() -> None:
    assert hosts_of(place(orders(*wanted(3)), [host("a", most=2)])) == ["a", "a", ""]
    assert hosts_of(place(orders(*wanted(1)), [host("a", 24, most=0)])) == [""]


def test_a_worker_that_ends_still_holds_its_place() -> None:
    leaving = LaunchReport("old", "p", LaunchState.STOPPING, "a", pid=5, since_ms=NOW)
    assert hosts_of(place(orders(*wanted(1)), [host("a", most=1, launches=(leaving,))])) == [""]


def test_what_the_agent_has_counted_is_not_counted_twice() -> None:
    """Its report says what is left after the worker it started, also before that worker took it."""
    running = LaunchReport("l-0", "p", LaunchState.RUNNING, "a", pid=5, since_ms=NOW)
    first = replace(wanted(1, 10)[0], host="a")
    found = place(orders(first, Launch("l-1", "p", need_bytes=12 * GIB)), [host("a", 14, launches=(running,))])
    assert hosts_of(found) == ["a", "a"]
    not_started = place(orders(first, Launch("l-1", "p", need_bytes=12 * GIB)), [host("a", 14)])
    assert hosts_of(not_started) == ["a", ""]


def test_where_a_pool_crashes_it_goes_last() -> None:
    found = place(orders(*wanted(2)), [host("a", 24), host("b", 8)], {"p": ["a"]})
    assert hosts_of(found) == ["b", "a"]


@pytest.fixture
async def launcher(redis: Redis, server_url: str) -> AsyncIterator[AgentsLauncher]:
    settings = load_settings({"redis.url": f"{server_url}?db=5", "agent.secret": "a secret of the bell"}, environment={})
    found = AgentsLauncher(settings, ScaleStore(redis), Fleet(redis), grace_s=0.2)
    yield found
    await found.close()


async def test_hosts_are_rung_when_their_part_changes(launcher: AgentsLauncher, server_url: str) -> None:
    raw = connect_blocking(f"{server_url}?db=5")
    raw.flushdb()

    def rings(name: str) -> int:
        return len(GuardedQueue(host_queue(name), connection=raw))

    first = Launch("l-0", "p", host="a")
    await launcher.apply(orders(first, Launch("l-1", "p", host="b")))
    await launcher.apply(orders(first, Launch("l-1", "p", host="b")))
    assert (rings("a"), rings("b")) == (1, 1)
    await launcher.apply(orders(first))
    assert (rings("a"), rings("b")) == (1, 2)
    await launcher.apply(replace(orders(first), epoch=2))
    assert (rings("a"), rings("b")) == (2, 2)
    with pytest.raises(PenstockError):
        await launcher.apply(orders(first))
    raw.flushdb()
    raw.close()


async def test_the_workers_of_a_host_that_is_gone_are_gone_unless_they_are_heard_of(
    launcher: AgentsLauncher, redis: Redis
) -> None:
    leader, fleet = Leader(redis), Fleet(redis)
    await leader.order(*(Launch(name, "p", host="a") for name in ("silent", "alive")))
    beat = Heartbeat("w-1", "a", 7, "demo", "sim", WorkerState.READY, 100, 1, 1.0, 0, 0, 0, 0, launch="alive")
    await fleet.beat(beat, 60_000)
    said = LaunchReport("silent", "p", LaunchState.RUNNING, "a", pid=5)
    await leader.store.announce(host("a", 24, launches=(said,)), 60_000)
    assert dict(await launcher.reports()) == {"silent": said}
    await leader.store.withdraw("a")
    assert dict(await launcher.reports()) == {}, "not at once: Redis, too, may have come back without reports"

    async def is_told() -> Any:
        return await launcher.reports()

    found = await until(is_told, "that it is gone")
    assert {name: report.state for name, report in found.items()} == {"silent": LaunchState.GONE}
    # Back again: its agent's word counts, and it ends what is no longer ordered.
    await leader.store.announce(host("a", 24, launches=(said,)), 60_000)
    assert dict(await launcher.reports()) == {"silent": said}


async def test_a_pool_that_crashes_everywhere_is_not_tried_on_and_on(launcher: AgentsLauncher, redis: Redis) -> None:
    store = ScaleStore(redis)
    crashed = LaunchReport("l-0", "p", LaunchState.CRASH_LOOP, "a", error="l-0 ended with code 2 after 0.1 s")
    assert "no agent" in await launcher.unplaceable("p", 0)
    await store.announce(host("a", 24, 24, launches=(crashed,)), 60_000)
    await launcher.reports()
    assert "ended with code 2" in await launcher.unplaceable("p", 0)
    assert await launcher.unplaceable("other", 0) == ""
    # The launch was given up, and so was its report: what came of it is still known.
    await store.announce(host("a", 24, 24), 60_000)
    await launcher.reports()
    assert "ended with code 2" in await launcher.unplaceable("p", 0)
    await store.announce(host("b", 24), 60_000)
    assert await launcher.unplaceable("p", 0) == ""
    assert hosts_of(await launcher.assign(orders(*wanted(1)))) == ["b"]
