"""The tick on a real server: it leads alone, writes before it acts, drains before it ends, and survives every interruption."""

from collections.abc import Callable, Mapping

import pytest
from redis.asyncio import Redis

from autoscaler.policy import PoolPolicy
from autoscaler.pools import Pool, pools_of
from autoscaler.reconcile import Reconciler
from dispatch.demand import Demand
from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.keys import ShardKeys
from dispatch.messages import InferenceRequest, InputKind, NewRequest, Sampling, encode, new_id
from dispatch.queue import Queue
from dispatch.reports import ModelCard
from dispatch.scale_store import ScaleStore
from dispatch.scaling import Action, LauncherName, LaunchReport, Orders, PoolOrders, PoolOverride
from dispatch.settings import Settings
from tests.autoscaler.hands import Clock, Hands

LEASE_MS = 5_000
Pools = Callable[[Mapping[str, PoolOverride], Mapping[str, PoolOrders]], list[Pool]]


class Stage:
    """A pool `p` of model `m`, its hands, and as many autoscalers as a test asks for."""

    def __init__(self, redis: Redis, queue: Queue, fleet: Fleet) -> None:
        self.clock = Clock()
        self.store = ScaleStore(redis, now=self.clock)
        self.queue, self.fleet = queue, fleet
        self.hands = Hands(fleet, self.clock)
        self.policy = PoolPolicy(min=0, max=4, idle_timeout_s=60, down_window_s=10)
        self._demand = Demand(redis, ShardKeys("s0"))

    def autoscaler(self, name: str = "as-1", *, dry_run: bool = False, pools: Pools | None = None) -> Reconciler:
        def one_pool(overrides: Mapping[str, PoolOverride], left: Mapping[str, PoolOrders]) -> list[Pool]:
            return [Pool("p", "m", LauncherName.LOCAL, self.policy, {"model": "m"}, override=overrides.get("p"))]

        return Reconciler(
            "main", name, self.store, self._demand, self.fleet, {LauncherName.LOCAL: self.hands}, pools or one_pool,
            lease_ms=LEASE_MS, keep=1000, dry_run=dry_run,
        )  # fmt: skip

    async def ask(self, requests: int = 1, cost: int = 50) -> None:
        for _ in range(requests):
            request = InferenceRequest(new_id(), "m", InputKind.COMPLETION, Sampling(10), prompt="x")
            await self.queue.enqueue(NewRequest(request.id, "m", encode(request), InputKind.COMPLETION, cost, 3_600_000))

    async def go(self, autoscaler: Reconciler, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.ms += 1_000
            await self.hands.beat()
            await autoscaler.tick()

    async def until(self, autoscaler: Reconciler, condition: Callable[[], bool], most_s: int = 300) -> int:
        """Tick until it holds; how many seconds that took."""
        for second in range(most_s):
            if condition():
                return second
            await self.go(autoscaler, 1)
        raise AssertionError(f"waited {most_s} s in vain")


CARD = ModelCard("m", "sim", context_tokens=1000, kv_bytes_per_token=1, max_cost_tokens=1000)


@pytest.fixture
async def stage(redis: Redis, queue: Queue, fleet: Fleet) -> Stage:
    await fleet.put_card(CARD, None)
    return Stage(redis, queue, fleet)


async def test_one_waiting_request_wakes_one_and_idleness_ends_it(stage: Stage) -> None:
    one = stage.autoscaler()
    await stage.go(one, 3)
    assert stage.hands.started == 0
    await stage.ask()
    await stage.go(one, 1)
    assert stage.hands.started == 1
    await stage.go(one, 4)
    assert stage.hands.started == 1, "who starts is capacity"
    await stage.until(one, lambda: len(stage.hands.running) == 1)
    await stage.queue.purge("m")
    took = await stage.until(one, lambda: not stage.hands.running)
    assert took >= 60
    assert stage.hands.started == 1
    told = [d async for _, d in stage.store.decisions("p")]
    assert [(d.action, d.from_workers, d.to_workers) for d in reversed(told) if d.action in (Action.UP, Action.DOWN)] == [
        (Action.UP, 0, 1),
        (Action.DOWN, 1, 0),
    ]


async def test_the_first_worker_ever_comes_without_a_request_to_bring_the_models_card(redis: Redis, queue: Queue) -> None:
    fleet = Fleet(redis)
    stage = Stage(redis, queue, fleet)
    one = stage.autoscaler()
    await stage.go(one, 90)
    assert stage.hands.started == 1
    assert len(stage.hands.running) == 1, "it is awaited for as long as it takes"
    assert "no worker of m ever ran" in (await stage.store.statuses())["p"].decided.reason
    await fleet.put_card(CARD, None)
    await stage.until(one, lambda: not stage.hands.running)


async def test_a_worker_drains_before_it_ends_and_is_kept_if_needed(stage: Stage) -> None:
    stage.policy = PoolPolicy(min=2, max=4)
    one = stage.autoscaler()
    await stage.until(one, lambda: len(stage.hands.running) == 2)
    await stage.go(one, 8)
    a, b = stage.hands.running
    stage.hands.held = {a: 3, b: 1}
    stage.policy = PoolPolicy(min=1, max=1)
    await stage.go(one, 3)
    assert set(await stage.fleet.drains()) == {b}, "the one with least left to do"
    assert set(stage.hands.running) == {a, b}, "it holds one still"
    stage.policy = PoolPolicy(min=2, max=4)
    await stage.go(one, 3)
    assert await stage.fleet.drains() == {}
    assert stage.hands.started == 2, "kept, not replaced"
    stage.policy = PoolPolicy(min=1, max=1)
    await stage.go(one, 2)
    stage.hands.held = {a: 3}
    await stage.go(one, 3)
    assert set(stage.hands.running) == {a}
    assert await stage.fleet.drains() == {}, "nothing is left behind"


async def test_one_leads_and_the_next_goes_on_with_what_runs(stage: Stage) -> None:
    stage.policy = PoolPolicy(min=2, max=4)
    one, two = stage.autoscaler("as-1"), stage.autoscaler("as-2")
    await stage.until(one, lambda: len(stage.hands.running) == 2)
    await stage.go(one, 8)
    await two.tick()
    assert (one.leads, two.leads) == (True, False)
    applied, ran, epoch = len(stage.hands.applied), set(stage.hands.running), stage.hands.applied[-1].epoch
    stage.clock.ms += LEASE_MS  # the first one dies
    await stage.go(two, 3)
    assert two.leads
    assert set(stage.hands.running) == ran
    assert {o.epoch for o in stage.hands.applied[applied:]} == {epoch + 1}
    applied = len(stage.hands.applied)
    await one.tick()  # it was only frozen
    assert not one.leads
    assert len(stage.hands.applied) == applied


async def test_a_new_leader_knows_the_turns_of_the_one_before(stage: Stage) -> None:
    stage.policy = PoolPolicy(min=0, max=4, idle_timeout_s=20, down_window_s=1)
    one, two = stage.autoscaler("as-1"), stage.autoscaler("as-2")
    await stage.ask(30, 200)
    await stage.until(one, lambda: len(stage.hands.running) == 4)
    await stage.queue.purge("m")
    await stage.until(one, lambda: len(stage.hands.running) < 4)
    turned_at_ms = stage.clock.ms
    stage.clock.ms += LEASE_MS  # it dies; the next one would go up at once
    await stage.ask(30, 200)
    before = len((await stage.store.orders("main")).launches())
    await stage.go(two, 1)
    assert two.leads
    limits = (await stage.store.statuses())["p"].decided.limits
    assert "one turn in 60 s" in limits, limits
    assert len((await stage.store.orders("main")).launches()) == before
    await stage.until(two, lambda: len(stage.hands.running) == 4)
    assert stage.clock.ms - turned_at_ms >= 55_000


async def test_a_leader_that_was_overtaken_within_a_tick_changes_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.policy = PoolPolicy(min=1, max=4)
    one, two = stage.autoscaler("as-1"), stage.autoscaler("as-2")
    looked = stage.hands.unplaceable

    async def slow(pool: str, need_bytes: int) -> str:
        monkeypatch.setattr(stage.hands, "unplaceable", looked)
        stage.clock.ms += LEASE_MS
        await two.tick()
        return ""

    monkeypatch.setattr(stage.hands, "unplaceable", slow)
    await one.tick()
    epoch = (await stage.store.leader("main")).epoch
    assert {orders.epoch for orders in stage.hands.applied} == {epoch}
    assert (await stage.store.orders("main")).epoch == epoch
    assert not one.leads


async def test_a_tick_that_cannot_observe_decides_nothing(stage: Stage) -> None:
    stage.policy = PoolPolicy(min=2, max=4)
    one = stage.autoscaler()
    await stage.until(one, lambda: len(stage.hands.running) == 2)
    ran = set(stage.hands.running)
    stage.hands.away = True
    stage.policy = PoolPolicy(min=0, max=1)
    await stage.go(one, 30)
    assert set(stage.hands.running) == ran
    assert (await stage.store.statuses())["p"].decided.reason.startswith("could not observe: The hands do not answer")


async def test_what_dies_for_good_is_replaced(stage: Stage) -> None:
    stage.policy = PoolPolicy(min=2, max=4)
    one = stage.autoscaler()
    await stage.until(one, lambda: len(stage.hands.running) == 2)
    await stage.go(one, 8)
    dead = next(iter(stage.hands.running))
    await stage.hands.die(dead)
    took = await stage.until(one, lambda: len(stage.hands.running) == 2)
    assert took <= 3
    assert dead not in stage.hands.running


async def test_a_crash_loop_is_told_once_and_not_looped(stage: Stage) -> None:
    one = stage.autoscaler()
    await stage.ask()
    await stage.go(one, 1)
    (name,) = stage.hands.running
    await stage.hands.die(name)
    stage.hands.gone.discard(name)
    stage.hands.crashed.add(name)
    stage.hands.full = "it crashed too often"
    await stage.go(one, 60)
    assert stage.hands.started == 1
    told = [d async for _, d in stage.store.decisions("p") if d.action is Action.BLOCKED]
    assert 1 <= len(told) <= 2
    assert "it crashed too often" in told[0].reason
    stage.hands.full = ""
    await stage.until(one, lambda: len(stage.hands.running) == 1)


async def test_a_dry_run_decides_and_changes_nothing(stage: Stage) -> None:
    one = stage.autoscaler(dry_run=True)
    await stage.ask()
    await stage.go(one, 3)
    assert stage.hands.applied == []
    assert (await stage.store.orders("main")).epoch == 0
    told = [d async for _, d in stage.store.decisions("p")]
    assert told[-1].dry_run
    assert told[-1].to_workers == 1
    assert await stage.store.statuses() == {}
    real = stage.autoscaler("as-2")
    await stage.go(real, 1)
    assert real.leads, "a rehearsal takes nobody's lease"


async def test_a_paused_pool_is_left_as_it_is(stage: Stage) -> None:
    stage.policy = PoolPolicy(min=0, max=4, paused=True)
    one = stage.autoscaler()
    await stage.ask(20)
    await stage.go(one, 20)
    assert stage.hands.started == 0


async def test_starts_are_learned_from_those_seen_to_become_ready(stage: Stage) -> None:
    stage.hands.cold_start_s = 7
    one = stage.autoscaler()
    await stage.ask()
    await stage.until(one, lambda: bool(stage.hands.running))
    await stage.go(one, 12)
    assert [7_000 <= ms <= 9_000 for ms in await stage.store.starts("p")] == [True]
    two = stage.autoscaler("as-2")
    stage.clock.ms += LEASE_MS
    await stage.go(two, 5)
    assert len(await stage.store.starts("p")) == 1, "it was ready before this one looked"


async def test_orders_that_redis_forgot_are_taken_from_what_runs(stage: Stage, redis: Redis) -> None:
    stage.policy = PoolPolicy(min=2, max=4)
    one = stage.autoscaler()
    await stage.until(one, lambda: len(stage.hands.running) == 2)
    ran = set(stage.hands.running)
    await redis.flushall()
    two = stage.autoscaler("as-2")
    await stage.go(two, 3)
    assert set(stage.hands.running) == ran
    assert stage.hands.started == 2


async def test_what_others_wrote_over_the_orders_is_named(stage: Stage, redis: Redis) -> None:
    await redis.set("{scale}:orders:main", b"nonsense")
    with pytest.raises(PenstockError, match=r"\{scale\}:orders:main"):
        await stage.autoscaler().tick()


async def test_an_outage_of_redis_replaces_nobody_and_a_silent_worker_is_found(stage: Stage) -> None:
    stage.policy = PoolPolicy(min=2, max=4)
    one = stage.autoscaler()
    await stage.until(one, lambda: len(stage.hands.running) == 2)
    await stage.go(one, 30)
    ran = set(stage.hands.running)
    stage.clock.ms += 60_000  # nothing could be asked for so long
    await stage.hands.fall_silent()
    await one.tick()
    assert one.leads
    await stage.go(one, 5)
    assert (set(stage.hands.running), stage.hands.started) == (ran, 2)
    await stage.hands.fall_silent()
    for _ in range(40):  # its process runs, and says nothing any more
        stage.clock.ms += 1_000
        await one.tick()
    assert stage.hands.started > 2


async def test_a_new_leader_gives_those_it_never_heard_their_time(stage: Stage) -> None:
    stage.policy = PoolPolicy(min=2, max=4)
    one, two = stage.autoscaler("as-1"), stage.autoscaler("as-2")
    await stage.until(one, lambda: len(stage.hands.running) == 2)
    await stage.go(one, 30)
    stage.clock.ms += 60_000
    await stage.hands.fall_silent()
    await two.tick()
    await stage.go(two, 3)
    assert stage.hands.started == 2


async def test_two_pools_of_one_model_leave_each_others_workers_alone(stage: Stage, fleet: Fleet) -> None:
    stage.policy = PoolPolicy(min=1, max=2)

    def pools(overrides: Mapping[str, PoolOverride], left: Mapping[str, PoolOrders]) -> list[Pool]:
        return [Pool(name, "m", LauncherName.LOCAL, stage.policy, {"model": "m"}) for name in ("p", "q")]

    one = stage.autoscaler(pools=pools)
    await stage.go(one, 90)
    assert stage.hands.started == 2, "one each"
    stage.policy = PoolPolicy(min=0, max=2, idle_timeout_s=20, down_window_s=5)
    await stage.until(one, lambda: not stage.hands.running)
    await stage.go(one, 70)
    await stage.ask()
    await stage.go(one, 20)
    assert len(stage.hands.running) == 1, "one request wakes one, not one of each pool"


async def test_a_removed_pool_is_emptied_by_its_own_launcher_and_forgotten(stage: Stage) -> None:
    stage.policy = PoolPolicy(min=1, max=2)
    one = stage.autoscaler()
    await stage.go(one, 10)
    await stage.store.override("p", PoolOverride(max=3))
    assert len(stage.hands.running) == 1
    settings = Settings.model_validate({"autoscaler": {"launcher": "exec", "pools": {}}})
    two = stage.autoscaler("as-2", pools=lambda overrides, left: pools_of(settings, overrides, left))
    stage.clock.ms += LEASE_MS
    await stage.until(two, lambda: not stage.hands.running)
    await stage.go(two, 3)
    assert await stage.store.statuses() == {}
    assert await stage.store.overrides() == {}


async def test_a_slow_launcher_acts_while_its_lease_is_kept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.policy = PoolPolicy(min=1, max=2)
    one = stage.autoscaler()
    asked = stage.hands.reports

    async def slow() -> Mapping[str, LaunchReport]:
        for _ in range(6):  # longer than the lease
            stage.clock.ms += 2_000
            await one.keep()
        return await asked()

    monkeypatch.setattr(stage.hands, "reports", slow)
    for _ in range(3):
        await one.tick()
    assert stage.hands.started == 1
    assert len({orders.epoch for orders in stage.hands.applied}) == 1, "it led all the time"
    assert stage.hands.asked == 3, "asked once a tick"


async def test_a_worker_that_drains_and_is_needed_again_is_no_cold_start(stage: Stage) -> None:
    stage.policy = PoolPolicy(min=2, max=4)
    one = stage.autoscaler()
    await stage.until(one, lambda: len(stage.hands.running) == 2)
    await stage.go(one, 60)
    a, b = stage.hands.running
    stage.hands.held = {a: 2, b: 1}
    stage.policy = PoolPolicy(min=1, max=1)
    await stage.go(one, 3)
    stage.policy = PoolPolicy(min=2, max=4)
    await stage.go(one, 5)
    assert max(await stage.store.starts("p")) < 10_000


async def test_a_paused_pool_lets_who_drains_go_on(stage: Stage) -> None:
    stage.policy = PoolPolicy(min=2, max=4)
    one = stage.autoscaler()
    await stage.until(one, lambda: len(stage.hands.running) == 2)
    await stage.go(one, 10)
    a, b = stage.hands.running
    stage.hands.held = {a: 2, b: 1}
    stage.policy = PoolPolicy(min=1, max=1)
    await stage.go(one, 2)
    assert set(await stage.fleet.drains()) == {b}
    stage.policy = PoolPolicy(min=1, max=1, paused=True)
    await stage.go(one, 3)
    assert await stage.fleet.drains() == {}
    assert len(stage.hands.running) == 2


async def test_a_worker_with_few_slots_is_not_taken_for_a_fast_one(stage: Stage) -> None:
    """Its weight is for 32 sequences, and it takes 4."""
    stage.policy = PoolPolicy(min=1, max=2)
    one = stage.autoscaler()
    await stage.until(one, lambda: bool(stage.hands.running))
    await stage.go(one, 8)
    assert (await stage.store.statuses())["p"].tokens_per_s_each == 100.0 * 4 / 32


class Places(Hands):
    """Hands in several places, which report through Redis."""

    async def assign(self, orders: Orders) -> Orders:
        return orders


async def test_where_redis_knew_of_no_orders_hosts_are_waited_for_a_moment_only(stage: Stage, fleet: Fleet) -> None:
    stage.hands = Places(fleet, stage.clock)
    await stage.ask()
    rehearsing = stage.autoscaler(dry_run=True)
    await stage.go(rehearsing, 6)  # nobody writes orders: none are known at any of its looks
    told = [d async for _, d in stage.store.decisions("p")]
    assert told[-1].reason.startswith("could not observe: Redis knew of no orders")
    assert told[0].to_workers == 1
    one = stage.autoscaler("as-2")
    await stage.go(one, 2)
    assert stage.hands.started == 0, "they had no time to tell what runs"
    await stage.go(one, 4)
    assert stage.hands.started == 1
