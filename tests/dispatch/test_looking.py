"""Looking at the queue: positions, lists, lines and counters, and purging what waits."""

from dispatch.states import Priority, RequestState
from tests.dispatch.twin import MODEL, Twin
from tests.dispatch.walks import running


async def test_position_counts_all_that_is_looked_at_before(twin: Twin) -> None:
    grant = await running(twin)
    await twin.park("w-1", accepting=False)
    normal, high = twin.new(), twin.new(priority=Priority.HIGH)
    await twin.enqueue(normal)
    await twin.enqueue(high)
    await twin.release(grant)
    places = [await twin.queue.position(await twin.queue.record(i)) for i in (high.id, grant.request, normal.id)]
    assert places == [1, 2, 3]
    assert await twin.queue.waiting(MODEL) == [high.id, grant.request, normal.id]


async def test_the_list_is_newest_first_and_goes_on_from_a_moment(twin: Twin) -> None:
    news = []
    for _ in range(3):
        news.append(twin.new())
        await twin.enqueue(news[-1])
        await twin.advance(1_000)
    assert [r.id async for r in twin.queue.list_requests()] == [n.id for n in reversed(news)]
    middle = await twin.queue.record(news[1].id)
    assert middle is not None
    assert [r.id async for r in twin.queue.list_requests(before_ms=middle.created_at_ms)] == [news[0].id]


async def test_stats_count_what_waits_runs_and_ended(twin: Twin) -> None:
    grant = await running(twin)
    await twin.finish(grant, 1, b"one")
    await running(twin)
    await twin.enqueue(twin.new(500, priority=Priority.LOW))
    stats = await twin.queue.stats(MODEL)
    assert (stats.backlog, stats.running, stats.parked, stats.paused) == (1, 1, 1, False)
    assert [line.backlog for line in stats.lines] == [0, 0, 1]
    assert (stats.totals["enqueued"], stats.totals["completed"]) == (3, 1)


async def test_purge_cancels_what_waits_and_nothing_else(twin: Twin) -> None:
    grant = await running(twin)
    low, normal = twin.new(500, priority=Priority.LOW), twin.new(500)
    await twin.enqueue(low)
    await twin.enqueue(normal)
    assert await twin.queue.purge(MODEL, Priority.LOW) == 1
    assert await twin.queue.purge(MODEL) == 1
    for request, state in ((low.id, RequestState.CANCELLED), (normal.id, RequestState.CANCELLED), (grant.request, "running")):
        record = await twin.queue.record(request)
        assert record is not None
        assert record.state == state
