"""Who meets whom: priorities, age, the front of a line, the window, the score."""

from dispatch.rules import QueueRules
from dispatch.scores import Strategy
from dispatch.states import Priority, RequestState
from tests.dispatch.twin import Twin
from tests.dispatch.walks import running


async def taken_in_order(t: Twin, worker: str = "w-9") -> list[str]:
    """One at a time, all that waits."""
    taken = []
    while t.model.backlog():
        await t.park(worker, limit=1_000, slots=1)
        grant = next(t.grant(r.id) for r in t.model.held_by(worker))
        taken.append(grant.request)
        begun = await t.begin(grant)
        assert begun is not None
        await t.park(worker, limit=1_000, slots=1, accepting=False)
        await t.finish(grant, begun.seq + 1)
    return taken


async def test_by_priority_then_given_back_first_then_by_age(twin: Twin) -> None:
    low = await running(twin, "w-1", priority=Priority.LOW)
    normal = await running(twin, "w-1")
    await twin.park("w-1", accepting=False)
    news = [twin.new(priority=p) for p in (Priority.LOW, Priority.NORMAL, Priority.HIGH)]
    for new in news:
        await twin.enqueue(new)
    await twin.release(low)
    await twin.release(normal)
    new_low, new_normal, new_high = (new.id for new in news)
    assert await taken_in_order(twin) == [new_high, normal.request, new_normal, low.request, new_low]


async def test_those_given_back_keep_the_order_of_their_return(twin: Twin) -> None:
    grants = [await running(twin, "w-1") for _ in range(3)]
    await twin.park("w-1", accepting=False)
    for grant in (grants[1], grants[0], grants[2]):
        await twin.release(grant)
    assert await taken_in_order(twin) == [grants[n].request for n in (1, 0, 2)]


async def test_what_is_too_big_is_overtaken_by_what_fits(twin: Twin) -> None:
    big, small = twin.new(500), twin.new(10)
    await twin.enqueue(big)
    await twin.enqueue(small)
    await twin.park("w-1", limit=100)
    assert twin.record(small.id).state is RequestState.GRANTED
    await twin.park("w-2", limit=500)
    assert twin.record(big.id).worker == "w-2"


async def test_a_small_worker_sees_behind_a_window_of_what_it_cannot_take(twin: Twin) -> None:
    twin = Twin(twin.redis, QueueRules())
    small = [twin.new(20), twin.new(10), twin.new(10)]
    for _ in range(40):
        await twin.enqueue(twin.new(500))
    for new in small:
        await twin.enqueue(new)
    await twin.park("w-1", limit=40)
    assert [twin.record(new.id).state for new in small] == [RequestState.GRANTED] * 3


async def test_the_lowest_score_that_has_room_is_next(twin: Twin) -> None:
    await twin.park("slow", weight=1.0)
    await twin.park("fast", weight=3.5)
    await twin.park("tiny", weight=9.0, limit=5)
    workers = []
    for _ in range(5):
        new = twin.new(strategy=Strategy.WEIGHTED_LEAST_CONNECTIONS)
        await twin.enqueue(new)
        workers.append(twin.record(new.id).worker)
    assert workers == ["fast", "fast", "fast", "slow", "fast"]


async def test_a_request_goes_to_another_worker_than_the_one_that_gave_it_back(twin: Twin) -> None:
    grant = await running(twin, "w-1")
    await twin.park("w-2", weight=0.1)
    await twin.release(grant)
    assert twin.record(grant.request).worker == "w-2"


async def test_long_waiting_outweighs_a_priority(twin: Twin) -> None:
    low, normal = twin.new(priority=Priority.LOW), twin.new(priority=Priority.NORMAL)
    await twin.enqueue(low)
    await twin.advance(twin.rules.ageing_ms + 1)
    await twin.enqueue(normal)
    high = twin.new(priority=Priority.HIGH)
    await twin.enqueue(high)
    order = []
    for n in range(3):
        await twin.park(f"w-{n}", limit=10, slots=1)
        order.append(next(i for i in (low.id, normal.id, high.id) if twin.record(i).worker == f"w-{n}"))
    assert order == [high.id, low.id, normal.id]
