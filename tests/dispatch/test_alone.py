"""A suspect of a crash runs alone: nothing beside it, and nothing keeps it from its turn for ever."""

from dispatch.messages import Grant
from dispatch.states import RequestState
from tests.dispatch.twin import Twin
from tests.dispatch.walks import running

S = RequestState


async def held_by(twin: Twin, worker: str, count: int) -> list[Grant]:
    await twin.park(worker)
    news = [twin.new(10) for _ in range(count)]
    for new in news:
        await twin.enqueue(new)
    grants = [twin.grant(new.id) for new in news]
    for grant in grants:
        await twin.begin(grant)
    return grants


async def test_a_busy_worker_is_kept_free_for_it(twin: Twin) -> None:
    first, second = await held_by(twin, "w-1", 2)
    grant = await running(twin, "w-dead", max_attempts=9)
    await twin.abandon("w-dead", (grant.request,))
    assert twin.record(grant.request).reserved == "w-1"
    beside = twin.new(10)
    await twin.enqueue(beside)
    assert twin.record(beside.id).state is S.QUEUED, "the worker takes nothing more"
    await twin.finish(first, 1)
    assert twin.record(grant.request).state is S.QUEUED
    await twin.finish(second, 1)
    assert twin.record(grant.request).state is S.GRANTED
    assert twin.record(beside.id).state is S.QUEUED
    alone = twin.grant(grant.request)
    await twin.begin(alone)
    await twin.finish(alone, 2)
    assert twin.record(beside.id).state is S.GRANTED


async def test_another_worker_takes_over_from_one_that_is_not_seen(twin: Twin) -> None:
    await held_by(twin, "w-1", 1)
    grant = await running(twin, "w-dead", max_attempts=9)
    await twin.abandon("w-dead", (grant.request,))
    assert twin.record(grant.request).reserved == "w-1"
    await twin.advance(twin.rules.worker_seen_ms)
    assert (await twin.park("w-2")).held == 1
    assert twin.record(grant.request).worker == "w-2"
    back = await twin.park("w-1")
    assert back.room_tokens > 0, "the first is no longer kept free"


async def test_a_cancelled_suspect_frees_the_worker_that_was_kept_for_it(twin: Twin) -> None:
    await held_by(twin, "w-1", 1)
    grant = await running(twin, "w-dead", max_attempts=9)
    await twin.abandon("w-dead", (grant.request,))
    waits = twin.new(10)
    await twin.enqueue(waits)
    assert twin.record(waits.id).state is S.QUEUED
    await twin.cancel(grant.request)
    assert twin.record(waits.id).state is S.GRANTED


async def test_two_suspects_do_not_run_on_one_worker(twin: Twin) -> None:
    grants = [await running(twin, "w-dead", max_attempts=9) for _ in range(2)]
    await twin.abandon("w-dead", tuple(g.request for g in grants))
    assert (await twin.park("w-1")).held == 1
    assert {twin.record(g.request).state for g in grants} == {S.GRANTED, S.QUEUED}


async def test_the_next_attempt_is_told_in_the_log_and_the_story(twin: Twin) -> None:
    grant = await running(twin, "w-1", max_attempts=9)
    await twin.append(grant, 1, b"one")
    await twin.abandon("w-1", ())
    await twin.park("w-2")
    begun = await twin.begin(twin.grant(grant.request))
    assert begun is not None and begun.seq == 2
    assert [e.kind for e in await twin.queue.output(grant.request)] == ["chunk", "note"]
    record = await twin.queue.record(grant.request)
    assert record is not None
    assert [(a.attempt, a.worker, a.why) for a in record.story] == [(1, "w-1", "worker w-1: its process exited")]
