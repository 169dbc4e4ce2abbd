"""Who leads a group of pools, and that nobody else's orders are written."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.scale_store import ScaleStore
from dispatch.scaling import Action, DecisionRecord, HostReport, Launch, Orders, PoolOrders, PoolOverride, PoolStatus

TTL_MS = 5_000


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(redis: Redis, clock: Clock) -> ScaleStore:
    return ScaleStore(redis, now=clock)


def decided(pool: str, to: int = 1, at_ms: int = 0) -> tuple[PoolStatus, DecisionRecord]:
    record = DecisionRecord(at_ms, pool, "m", Action.UP, 0, to, float(to), (0, 4), "queue_delay", "waits")
    return PoolStatus(pool, "m", "main", "local", "as-1", record), record


async def test_one_leads_and_keeps_leading(store: ScaleStore, clock: Clock) -> None:
    first = await store.lead("main", "as-1", TTL_MS)
    assert (first.leader, first.epoch, first.leads) == ("as-1", clock.ms // 1000, True), "the first epoch is the clock's"
    assert not (await store.lead("main", "as-2", TTL_MS)).leads
    clock.ms += TTL_MS - 1
    assert (await store.lead("main", "as-1", TTL_MS)).epoch == first.epoch
    clock.ms += TTL_MS - 1
    assert not (await store.lead("main", "as-2", TTL_MS)).leads


async def test_a_lease_that_is_over_gives_a_new_epoch_to_whoever_comes(store: ScaleStore, clock: Clock) -> None:
    first = await store.lead("main", "as-1", TTL_MS)
    clock.ms += TTL_MS
    assert (await store.lead("main", "as-1", TTL_MS)).epoch == first.epoch + 1, "somebody may have led in between"
    clock.ms += TTL_MS
    other = await store.lead("main", "as-2", TTL_MS)
    assert (other.leads, other.epoch) == (True, first.epoch + 2)


async def test_epochs_grow_over_a_redis_that_lost_its_memory(store: ScaleStore, clock: Clock, redis: Redis) -> None:
    old = await store.lead("main", "as-1", TTL_MS)
    await redis.flushall()
    clock.ms += 1_000
    assert (await store.lead("main", "as-1", TTL_MS)).epoch > old.epoch


async def test_a_clock_that_was_set_back_does_not_keep_a_dead_leader_alive(store: ScaleStore, clock: Clock) -> None:
    old = await store.lead("main", "as-1", TTL_MS)
    clock.ms -= 3_600_000
    new = await store.lead("main", "as-2", TTL_MS)
    assert (new.leads, new.epoch) == (True, old.epoch + 1)


async def test_groups_lead_themselves(store: ScaleStore) -> None:
    assert (await store.lead("main", "as-1", TTL_MS)).leads
    assert (await store.lead("other", "as-2", TTL_MS)).leads


async def test_who_resigns_is_followed_at_once(store: ScaleStore) -> None:
    first = await store.lead("main", "as-1", TTL_MS)
    assert not await store.resign("main", "as-2")
    assert await store.resign("main", "as-1")
    assert not (await store.leader("main")).leads
    following = await store.lead("main", "as-2", TTL_MS)
    assert (following.leads, following.epoch) == (True, first.epoch + 1)


async def test_orders_of_an_older_epoch_are_refused_whole(store: ScaleStore, clock: Clock) -> None:
    old = await store.lead("main", "as-1", TTL_MS)
    orders = Orders("main", old.epoch, (PoolOrders("p", "m", (Launch("l-1", "p"),)),))
    assert await store.order(old, "main", orders, [decided("p")], keep=100)
    clock.ms += TTL_MS
    new = await store.lead("main", "as-2", TTL_MS)
    assert not await store.order(old, "main", Orders("main", old.epoch), [decided("p", to=9)], keep=100)
    assert await store.orders("main") == orders
    assert (await store.statuses())["p"].decided.to_workers == 1
    assert [d.to_workers async for _, d in store.decisions("p")] == [1]
    assert await store.order(new, "main", Orders("main", new.epoch), [], keep=100)
    assert (await store.orders("main")).epoch == old.epoch + 1


async def test_a_leader_whose_lease_is_over_orders_nothing_even_if_nobody_followed(store: ScaleStore, clock: Clock) -> None:
    leads = await store.lead("main", "as-1", TTL_MS)
    clock.ms += TTL_MS
    assert not await store.order(leads, "main", Orders("main", 1), [], keep=100)


async def test_decisions_are_listed_newest_first_by_pool_and_capped(store: ScaleStore) -> None:
    leads = await store.lead("main", "as-1", TTL_MS)
    for n in range(300):
        assert await store.order(leads, "main", None, [decided("p" if n % 2 else "q", to=n)], keep=100)
    of_p = [d.to_workers async for _, d in store.decisions("p")]
    assert of_p[:3] == [299, 297, 295]
    assert 100 <= len([1 async for _ in store.decisions()]) < 300
    entry = [i async for i, _ in store.decisions()][10]
    older = [d.to_workers async for _, d in store.decisions(before=entry)]
    assert older[0] == 288


async def test_decisions_are_counted_also_those_that_are_not_logged(store: ScaleStore, clock: Clock) -> None:
    leads = await store.lead("main", "as-1", TTL_MS)
    up, record = decided("p q")
    hold = replace(up, decided=replace(record, action=Action.HOLD))
    await store.order(leads, "main", None, [(up, record), decided("q")], keep=100)
    await store.order(leads, "main", None, [(hold, None)], keep=100)
    await store.order(leads, "main", None, [(hold, None)], keep=100)
    assert await store.counts() == {("p q", "up"): 1, ("p q", "hold"): 2, ("q", "up"): 1}
    assert len([1 async for _ in store.decisions()]) == 2
    clock.ms += TTL_MS
    await store.lead("main", "as-2", TTL_MS)
    assert not await store.order(leads, "main", None, [(up, record)], keep=100)
    assert (await store.counts())["p q", "up"] == 1, "what is refused is not counted"
    await store.forget_pool("p q")
    assert await store.counts() == {("q", "up"): 1} and list(await store.statuses()) == ["q"]


async def test_two_people_at_once_do_not_undo_each_other(store: ScaleStore) -> None:
    changes = [{"min": 1}, {"max": 5}, {"target_s": 2.5}, {"paused": True}]
    await asyncio.gather(*(store.change_override("p", lambda o, c=change: replace(o, **c)) for change in changes))  # type: ignore[misc]
    assert await store.overrides() == {"p": PoolOverride(1, 5, 2.5, True)}
    assert await store.change_override("p", lambda _: PoolOverride()) is None
    assert await store.overrides() == {}


async def test_hosts_and_overrides_and_starts(store: ScaleStore, redis: Redis) -> None:
    await store.announce(HostReport("a", "agent-1", 5), 60_000)
    await store.announce(HostReport("b", "agent-2", 5), 60_000)
    await store.withdraw("b")
    assert [h.host for h in await store.hosts()] == ["a"]
    await store.override("p", PoolOverride(max=3))
    await store.override("q", PoolOverride(paused=True))
    await store.override("q", None)
    assert await store.overrides() == {"p": PoolOverride(max=3)}
    for ms in range(60):
        await store.note_start("p", ms)
    assert await store.starts("p") == list(range(59, 9, -1))


async def test_what_others_wrote_is_named(store: ScaleStore, redis: Redis) -> None:
    await redis.set("{scale}:orders:main", b"nonsense")
    with pytest.raises(PenstockError, match=r"\{scale\}:orders:main"):
        await store.orders("main")


async def test_drains_are_asked_for_and_taken_back(redis: Redis) -> None:
    fleet = Fleet(redis)
    await fleet.ask_to_drain("w-1", "l-2", now_ms=7)
    assert await fleet.is_asked_to_drain("w-9", "l-2")
    assert not await fleet.is_asked_to_drain("w-9", "l-9")
    await fleet.take_back_drain("l-2")
    assert await fleet.drains() == {"w-1": 7}


async def test_one_entry_that_cannot_be_read_hides_no_other(store: ScaleStore, redis: Redis) -> None:
    leads = await store.lead("main", "as-1", TTL_MS)
    assert await store.order(leads, "main", None, [decided("p", to=1)], keep=100)
    await redis.xadd("{scale}:log", {"pool": "p", "d": b'{"v": 99}'})
    await redis.hset("{scale}:overrides", mapping={"q": b"nonsense"})
    await store.override("p", PoolOverride(max=3))
    assert [d.to_workers async for _, d in store.decisions("p")] == [1]
    assert await store.overrides() == {"p": PoolOverride(max=3)}


async def test_one_agent_has_a_hosts_name(store: ScaleStore, redis: Redis) -> None:
    assert await store.announce(HostReport("a", "first", 5), 60_000) == ""
    assert await store.announce(HostReport("a", "second", 6), 60_000) == "first"
    assert [h.agent for h in await store.hosts()] == ["first"]
    await store.withdraw("a", "second")
    assert await store.host_agent("a") == "first", "only its own report"
    tries = [store.announce(HostReport("b", f"agent-{n}", 5), 60_000) for n in range(8)]
    assert sorted(await asyncio.gather(*tries)).count("") == 1, "of many at once one has it"
    await store.withdraw("a", "first")
    assert await store.announce(HostReport("a", "second", 7), 60_000) == ""
    await redis.set("{scale}:host:a", b"nonsense")
    assert await store.announce(HostReport("a", "second", 8), 60_000) == "", "what cannot be read is written over"
    assert [h.host for h in await store.hosts()] == ["a", "b"]
