"""What happens to a request when something goes otherwise than planned. One concept a test."""

from collections.abc import Awaitable, Callable

from dispatch import messages as m
from dispatch.queue import Queue
from dispatch.states import RequestState

Ask = Callable[..., Awaitable[m.Enqueued]]
NextGrant = Callable[[str], Awaitable[m.Grant]]
SweepUntil = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
ROOM = m.Offer("w-1", "demo", limit_tokens=100, slots=4, weight=1.0)


async def test_cancel_is_final_at_once(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.park(ROOM)
    asked = await ask()
    grant = await next_grant("w-1")
    await queue.begin(grant)
    assert await queue.cancel(asked.id) is RequestState.CANCELLED
    assert await queue.append(grant, 1, b"too late") is m.WriteStatus.FENCED
    assert (await queue.output(asked.id))[-1].kind is m.EntryKind.END


async def test_a_cancelled_request_stops_its_worker(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.park(ROOM)
    asked = await ask()
    grant = await next_grant("w-1")
    await queue.begin(grant)
    await queue.cancel(asked.id)
    _, words = await queue.read_inbox("w-1", grant.inbox_id, block_ms=1_000)
    assert words == [m.Stop(asked.id, 1, "cancelled")]


async def test_a_fault_is_retried_after_a_wait(queue: Queue, ask: Ask, next_grant: NextGrant, sweep_until: SweepUntil) -> None:
    await queue.park(ROOM)
    asked = await ask()
    grant = await next_grant("w-1")
    await queue.begin(grant)
    await queue.retry(grant, "engine_error", "a kernel failed")
    assert (await queue.record(asked.id)).state is RequestState.WAITING

    async def granted_again() -> bool:
        return (await queue.record(asked.id)).state is RequestState.GRANTED

    await sweep_until(granted_again)
    second = await next_grant("w-1")
    assert (second.request, second.attempt) == (asked.id, 2)


async def test_a_request_that_used_up_its_attempts_is_a_dead_letter(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.park(ROOM)
    asked = await ask(max_attempts=1)
    grant = await next_grant("w-1")
    await queue.begin(grant)
    await queue.retry(grant, "engine_error", "a kernel failed")
    assert (await queue.record(asked.id)).state is RequestState.FAILED
    assert b"a kernel failed" in (await queue.output(asked.id))[-1].data
    assert (await queue.stats("demo")).totals["dead"] == 1


async def test_a_worker_that_drains_gives_back(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.park(ROOM)
    asked = await ask()
    grant = await next_grant("w-1")
    await queue.begin(grant)
    await queue.append(grant, 1, b"half of it")
    await queue.park(m.Offer("w-1", "demo", limit_tokens=100, slots=4, weight=1.0, accepting=False))
    assert await queue.release(grant) is m.WriteStatus.OK
    await queue.park(m.Offer("w-2", "demo", limit_tokens=100, slots=4, weight=1.0))
    begun = await queue.begin(await next_grant("w-2"))
    assert (begun.attempt, begun.seq) == (2, 2)  # goes on after what was written and a note of the new attempt
    assert (await queue.record(asked.id)).charged == 0


async def test_a_dead_worker_is_barred_and_its_requests_move_on(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.park(ROOM)
    asked = await ask()
    await queue.begin(await next_grant("w-1"))
    assert await queue.abandon("w-1", "its process exited with signal 9", [asked.id]) == 1
    assert (await queue.park(ROOM)).barred
    await queue.park(m.Offer("w-2", "demo", limit_tokens=100, slots=4, weight=1.0))
    assert (await next_grant("w-2")).request == asked.id
    assert (await queue.record(asked.id)).crashes == 1


async def test_the_same_idempotency_key_is_the_same_request(queue: Queue, ask: Ask) -> None:
    first = await ask(idempotency="key", body_hash="body")
    again = await ask(idempotency="key", body_hash="body")
    assert (again.status, again.id) == (m.EnqueueStatus.REPLAY, first.id)
    other = await ask(idempotency="key", body_hash="another body")
    assert other.status is m.EnqueueStatus.MISMATCH


async def test_a_paused_model_takes_requests_in_and_gives_none_out(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.pause("demo", True)
    asked = await ask()
    assert (await queue.park(ROOM)).granted == 0
    await queue.pause("demo", False)
    assert (await next_grant("w-1")).request == asked.id
