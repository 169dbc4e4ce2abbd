"""Time goes by: leases, grants not begun, absences, backoff, readers, deadlines."""

import pytest
from redis.asyncio import Redis

from dispatch.rules import QueueRules
from dispatch.states import OnDisconnect, RequestState
from tests.dispatch.twin import Twin
from tests.dispatch.walks import lapse, running


async def test_a_lapsed_lease_is_charged_once(twin: Twin) -> None:
    grant = await running(twin)
    await lapse(twin)
    await twin.sweep()
    record = twin.record(grant.request)
    assert (record.state, record.charged, record.crashes) == (RequestState.QUEUED, 1, 0)


async def test_after_nobody_swept_leases_live_one_longer(twin: Twin) -> None:
    await twin.sweep()
    grant = await running(twin)
    await twin.advance(60_000)
    await twin.sweep()
    assert twin.record(grant.request).state is RequestState.RUNNING
    for _ in range(4):
        await twin.advance(2_499)
        await twin.sweep()
        assert twin.record(grant.request).charged == 0
    await twin.advance(4)
    await twin.sweep()
    assert twin.record(grant.request).charged == 1


async def test_a_worker_that_renews_under_the_amnesty_loses_nothing(twin: Twin) -> None:
    grant = await running(twin)
    await twin.advance(3_600_000 - 1)
    await twin.sweep()
    await twin.renew("w-1", [grant])
    await twin.finish(grant, 1, b"done")
    assert twin.record(grant.request).state is RequestState.COMPLETED


async def test_not_begun_goes_back_to_the_head_and_its_worker_is_passed_over(twin: Twin) -> None:
    await twin.park("w-1")
    first, second = twin.new(), twin.new()
    await twin.enqueue(first)
    await twin.advance(2_000)
    await twin.enqueue(second)
    assert twin.record(second.id).worker == "w-1"
    await twin.sweep()
    assert twin.record(first.id).state is RequestState.QUEUED
    assert twin.record(first.id).charged == 0
    await twin.renew("w-1", [])  # heard of, yet it takes nothing before it parks
    assert twin.record(first.id).state is RequestState.QUEUED
    await twin.park("w-1")
    assert twin.record(first.id).worker == "w-1"


async def test_a_worker_that_let_a_lease_lapse_is_not_granted_it_again_before_it_is_heard_of(redis: Redis) -> None:
    twin = Twin(redis, QueueRules(lease_ms=2_000, worker_seen_ms=3_000))
    await twin.sweep()  # the first sweep of all extends every lease
    grant = await running(twin, "w-1")
    for _ in range(4):
        await twin.advance(500)
        await twin.sweep()
    record = twin.record(grant.request)
    assert (record.state, record.charged, record.attempt) == (RequestState.QUEUED, 1, 1)
    await twin.park("w-1")
    assert twin.record(grant.request).attempt == 2


async def test_backoff_doubles_up_to_its_limit_with_jitter(redis: Redis) -> None:
    twin = Twin(redis, QueueRules(backoff_ms=500, backoff_max_ms=4_000))
    waits: list[list[int]] = []
    for _ in range(4):
        grant = await running(twin, max_attempts=9)
        waits.append([])
        for _ in range(6):
            await twin.begin(grant)
            await twin.retry(grant)  # the twin holds each wait against its bounds
            waits[-1].append(int(twin.seen.of["request"][grant.request]["not_before"]) - twin.now)
            await twin.advance(waits[-1][-1] - 1)
            await twin.sweep()
            assert twin.record(grant.request).state is RequestState.WAITING
            await twin.park("w-1")
            await twin.advance(1)
            await twin.sweep()
            grant = twin.grant(grant.request)
        await twin.begin(grant)
        await twin.finish(grant, 1)
    for charges, drawn in enumerate(zip(*waits, strict=True)):
        middle = min(500 * 2**charges, 4_000)
        assert all(middle // 2 <= wait <= middle * 1.5 for wait in drawn)
        assert len(set(drawn)) > 1, "no jitter: all come back at the same moment"


@pytest.mark.parametrize("state", ["queued", "granted", "running", "waiting"])
async def test_the_deadline_ends_it_wherever_it_is(twin: Twin, state: str) -> None:
    if state == "queued":
        new = twin.new(deadline_ms=1_500)
        await twin.enqueue(new)
        request = new.id
    elif state == "granted":
        await twin.park("w-1")
        new = twin.new(deadline_ms=1_500)
        await twin.enqueue(new)
        request = new.id
    else:
        grant = await running(twin, deadline_ms=100)
        request = grant.request
        if state == "waiting":
            await twin.retry(grant)
    assert twin.record(request).state == state
    await twin.advance(1_500)
    await twin.sweep()
    assert twin.record(request).state is RequestState.EXPIRED


async def test_a_dead_gateway_s_request_ends_and_one_that_may_go_on_goes_on(twin: Twin) -> None:
    mine = twin.new(reader="g-1", on_disconnect=OnDisconnect.CANCEL)
    detached = twin.new(reader="g-1", on_disconnect=OnDisconnect.CONTINUE)
    await twin.enqueue(mine)
    await twin.enqueue(detached)
    for _ in range(15):
        await twin.sweep()
        await twin.advance(2_000)
    await twin.sweep()
    assert twin.record(mine.id).state is RequestState.CANCELLED
    assert twin.record(detached.id).state is RequestState.QUEUED


async def test_gateways_have_a_lease_s_time_to_renew_after_everybody_was_away(twin: Twin) -> None:
    new = twin.new(reader="g-1", on_disconnect=OnDisconnect.CANCEL)
    await twin.enqueue(new)
    await twin.sweep()
    await twin.advance(40_000)
    await twin.sweep()
    assert twin.record(new.id).state is RequestState.QUEUED
    for _ in range(5):
        await twin.advance(2_000)
        await twin.sweep()
    assert twin.record(new.id).state is RequestState.CANCELLED


async def test_a_client_that_leaves_may_come_back_within_the_grace(twin: Twin) -> None:
    new = twin.new(reader="g-1", on_disconnect=OnDisconnect.CANCEL)
    await twin.enqueue(new)
    await twin.detach("g-1", new.id)
    await twin.advance(4_999)
    await twin.attach("g-2", new.id)
    await twin.advance(1)
    await twin.sweep()
    assert not twin.record(new.id).ended


async def test_one_sweep_looks_at_no_more_than_its_limit(twin: Twin) -> None:
    for _ in range(3):
        await twin.enqueue(twin.new(deadline_ms=1_000))
    twin.now += 1_000
    assert [await twin.queue.sweep(limit=2) for _ in range(3)] == [2, 1, 0]


async def test_an_orphan_ends_when_its_gateways_lease_does(twin: Twin) -> None:
    new = twin.new(reader="g-1", on_disconnect=OnDisconnect.CANCEL)
    await twin.enqueue(new)
    for second in range(1, 31):
        await twin.advance(1_000)
        if second == 1:
            await twin.keep_reading("g-1")
        await twin.sweep()
    assert twin.record(new.id).state is RequestState.QUEUED
    await twin.advance(1_000)
    await twin.sweep()
    assert twin.record(new.id).state is RequestState.CANCELLED


async def test_no_work_is_begun_after_the_deadline(twin: Twin) -> None:
    new = twin.new(deadline_ms=1_000)
    await twin.enqueue(new)
    await twin.advance(1_500)
    await twin.park("w-1")
    assert await twin.begin(twin.grant(new.id)) is None
    await twin.sweep()
    assert twin.record(new.id).state is RequestState.EXPIRED
