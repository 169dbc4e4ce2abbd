"""Looking at the queue: positions, lists, lines and counters, and purging what waits."""

import dataclasses

import pytest

from dispatch.errors import PenstockError
from dispatch.keys import ShardKeys
from dispatch.queue import Queue
from dispatch.states import Priority, RequestState
from tests.dispatch import walks
from tests.dispatch.twin import MODEL, Twin
from tests.dispatch.walks import running

KEYS = ShardKeys("s0")


def roomy(twin: Twin) -> Queue:
    """Its queue, with room for long lines."""
    return Queue(twin.redis, dataclasses.replace(walks.RULES, max_backlog=1_000), now=lambda: twin.now)


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
    assert [r.id async for r in twin.queue.list_requests(before=(middle.created_at_ms, ""))] == [news[0].id]


async def test_arrivals_while_a_list_is_read_neither_repeat_nor_hide_a_row(twin: Twin) -> None:
    """In one moment more than a page holds, too: of those the greater id comes first."""
    queue, first = roomy(twin), []
    for n in range(250):
        first.append(twin.new())
        await queue.enqueue(first[-1])
        twin.now += n % 250 > 230
    listed: list[str] = []
    async for record in queue.list_requests():
        listed.append(record.id)
        if len(listed) in (1, 100, 101, 180):
            twin.now += 1_000
            await queue.enqueue(twin.new())
    assert sorted(listed) == sorted(n.id for n in first)
    whole = [(r.created_at_ms, r.id) async for r in queue.list_requests()]
    assert whole == sorted(whole, reverse=True)
    assert [(r.created_at_ms, r.id) async for r in queue.list_requests(before=whole[150])] == whole[151:]


async def test_a_damaged_record_is_passed_over_in_lists(twin: Twin, caplog: pytest.LogCaptureFixture) -> None:
    queue, news = roomy(twin), [twin.new() for _ in range(4)]
    for new in news:
        await queue.enqueue(new)
        twin.now += 1
    await twin.redis.hset(KEYS.request(news[1].id), "state", "who knows")
    await twin.redis.delete(KEYS.request(news[2].id))
    await twin.redis.set(KEYS.request(news[2].id), "no hash", ex=60)
    assert [r.id async for r in twin.queue.list_requests()] == [news[3].id, news[0].id]
    assert [r.getMessage() for r in caplog.records if r.name == "penstock.dispatch"] == [
        "Pass over a record that cannot be read",
        "Passed over records that cannot be read",
    ]
    assert news[2].id in str(caplog.records[0].__dict__)


async def test_far_back_in_a_long_line_the_position_is_not_counted(twin: Twin) -> None:
    queue = roomy(twin)
    news = [twin.new() for _ in range(202)]
    for new in news:
        await queue.enqueue(new)
    records = [await queue.record(news[n].id) for n in (0, 199, 200, 201)]
    assert [await queue.position(r) for r in records if r] == [1, 200, None, None]


async def test_stats_count_what_waits_runs_and_ended(twin: Twin) -> None:
    grant = await running(twin)
    await twin.finish(grant, 1, b"one")
    await running(twin)
    await twin.enqueue(twin.new(500, priority=Priority.LOW))
    stats = await twin.queue.stats(MODEL)
    assert (stats.backlog, stats.running, stats.parked, stats.paused) == (1, 1, 1, False)
    assert [line.backlog for line in stats.lines] == [0, 0, 1]
    assert (stats.totals["enqueued"], stats.totals["completed"]) == (3, 1)


async def test_purge_of_a_tenant_leaves_the_others(twin: Twin) -> None:
    mine, theirs = twin.new(tenant="mine"), twin.new(tenant="theirs")
    await twin.queue.enqueue(mine)
    await twin.queue.enqueue(theirs)
    assert await twin.queue.purge(MODEL, tenant="mine") == 1
    assert await twin.queue.waiting(MODEL) == [theirs.id]
    assert await twin.queue.purge(MODEL) == 1


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


async def test_a_record_of_another_schema_is_named_and_not_misread(twin: Twin) -> None:
    new = twin.new()
    await twin.enqueue(new)
    await twin.redis.hset(KEYS.request(new.id), "v", 9)
    with pytest.raises(PenstockError, match="schema version is 9"):
        await twin.queue.record(new.id)
