"""The zombie rule: whoever lost a lease can write nothing any more, whatever it believes."""

from dispatch import messages as m
from dispatch.states import RequestState
from tests.dispatch.twin import Twin
from tests.dispatch.walks import lapse, running

FENCED = m.WriteStatus.FENCED


async def test_a_worker_that_comes_back_from_the_dead_is_fenced(twin: Twin) -> None:
    old = await running(twin, "w-1")
    await twin.append(old, 1, b"one")
    await lapse(twin)
    await twin.park("w-2")
    new = twin.grant(old.request)
    assert (new.worker, new.attempt) == ("w-2", 2)
    assert await twin.begin(new)
    assert await twin.queue.append(old, 2, b"late") is FENCED
    assert await twin.queue.finish(old, 2, b"late", b"{}") is FENCED
    assert await twin.queue.release(old) is FENCED
    assert await twin.queue.retry(old, "engine_error", "late") is FENCED
    assert await twin.queue.begin(old) is None
    assert (await twin.queue.renew("w-1", [old])).lost == ((old.request, old.attempt),)
    await twin.check()
    await twin.append(new, 3, b"two")
    await twin.finish(new, 3)
    assert [e.data for e in await twin.queue.output(old.request) if e.kind is m.EntryKind.CHUNK][:2] == [b"one", b"two"]


async def test_the_same_attempt_with_another_nonce_is_fenced(twin: Twin) -> None:
    grant = await running(twin)
    await twin.write_as_stranger(grant)
    await twin.append(grant, 1, b"one")
    assert twin.record(grant.request).state is RequestState.RUNNING


async def test_the_lease_is_lost_by_the_sweep_and_not_by_the_clock(twin: Twin) -> None:
    grant = await running(twin)
    await twin.advance(60_000)
    await twin.append(grant, 1, b"late, and nobody took it away")
    await twin.renew("w-1", [grant])
    await twin.finish(grant, 2)


async def test_after_every_ending_its_worker_is_fenced(twin: Twin) -> None:
    for end in ("cancel", "deadline"):
        grant = await running(twin, deadline_ms=2_500)
        if end == "cancel":
            await twin.cancel(grant.request)
        else:
            await twin.advance(2_500)
            await twin.sweep()
        assert twin.record(grant.request).ended
        assert await twin.queue.finish(grant, 1, b"late", b"{}") is FENCED
        await twin.check()


async def test_a_late_finish_of_a_dead_letter_is_fenced(twin: Twin) -> None:
    grant = await running(twin, max_attempts=1)
    await lapse(twin)
    assert twin.record(grant.request).dead
    assert await twin.queue.finish(grant, 1, b"late", b"{}") is FENCED
    await twin.check()
