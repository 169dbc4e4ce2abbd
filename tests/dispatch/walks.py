"""Directed walks: each tells one law as a short story on the twin, which checks everything after each step.

They catch the planted bugs (test_planted_bugs.py), and pass on the scripts as they are.
"""

from collections.abc import Awaitable, Callable

from dispatch import messages as m
from dispatch.outbox import Verdict
from dispatch.rules import QueueRules
from dispatch.states import OnDisconnect, Priority, RequestState
from tests.dispatch.twin import Twin, must

Walk = Callable[[Twin], Awaitable[None]]
RULES = QueueRules(max_backlog=3, feed_cap=6)
S = RequestState


async def running(t: Twin, worker: str = "w-1", **fields: object) -> m.Grant:
    """A request that `worker` runs."""
    await t.park(worker)
    new = t.new(**fields)  # type: ignore[arg-type]
    await t.enqueue(new)
    await t.read_inbox(worker)
    grant = t.grant(new.id)
    await t.begin(grant)
    return grant


async def lapse(t: Twin) -> None:
    """A whole lease goes by under a sweeper that was never away."""
    for _ in range(6):
        await t.sweep()
        await t.advance(2_000)
    await t.sweep()


async def whole_life(t: Twin) -> None:
    grant = await running(t, reader="g-1")
    await t.append(grant, 1, b"one")
    await t.append(grant, 2, b"two")
    await t.append(grant, 2, b"two")
    await t.append(grant, 4, b"four")
    await t.read_feed("g-1")
    await t.renew("w-1", [grant])
    await t.renew("w-1", [])
    await t.finish(grant, 5, b"five")
    await t.finish(grant, 3, b"three")
    await t.finish(grant, 3, b"three")
    await t.read_feed("g-1")


async def zombie(t: Twin) -> None:
    """Grant to A, begin, lease over, swept, grant to B: A is fenced whatever it writes."""
    old = await running(t, "w-1")
    await t.append(old, 1, b"one")
    await lapse(t)
    await t.park("w-2")
    new = t.grant(old.request)
    must(new.worker == "w-2" and new.attempt == 2, f"w-2 has no second attempt: {new}")
    await t.append(old, 2, b"late")
    await t.begin(new)
    await t.append(old, 2, b"late")
    await t.begin(old)
    await t.renew("w-1", [old])
    await t.release(old)
    await t.retry(old)
    await t.finish(old, 2, b"late")
    await t.append(new, 2, b"two")
    await t.finish(new, 3)
    await t.finish(old, 3)


async def strangers(t: Twin) -> None:
    grant = await running(t)
    await t.write_as_stranger(grant)
    await t.append(grant, 1, b"one")
    await t.write_as_stranger(grant)
    await t.finish(grant, 2)
    await t.write_as_stranger(grant)


async def deadline_while_running(t: Twin) -> None:
    grant = await running(t, deadline_ms=4_000)
    for _ in range(5):
        await t.renew("w-1", [grant])
        await t.advance(1_000)
        await t.sweep()
    must(t.record(grant.request).state is S.EXPIRED, "the deadline passed unnoticed")
    await t.renew("w-1", [grant])
    await t.finish(grant, 1)


async def waiting_in_line(t: Twin) -> None:
    news = [t.new() for _ in range(3)]
    for new in news:
        await t.enqueue(new)
    await t.cancel(news[1].id)
    await t.cancel(news[1].id)
    await t.park("w-1", slots=1)
    must(t.grant(news[0].id).worker == "w-1", "the oldest is first")
    await t.begin(t.grant(news[0].id))
    await t.finish(t.grant(news[0].id), 1)
    must(t.record(news[2].id).state is S.GRANTED, "the next follows")


async def cancel_while_running(t: Twin) -> None:
    grant = await running(t, reader="g-1")
    await t.append(grant, 1, b"one")
    await t.cancel(grant.request)
    await t.append(grant, 2, b"two")
    await t.finish(grant, 2, b"two")
    await t.cancel(grant.request)
    await t.read_feed("g-1")


async def cancel_after_the_end(t: Twin) -> None:
    grant = await running(t)
    await t.finish(grant, 1, b"one")
    await t.cancel(grant.request)


async def everybody_was_away(t: Twin) -> None:
    await t.sweep()
    grant = await running(t)
    await t.advance(60_000)
    await t.sweep()
    must(t.record(grant.request).charged == 0, "charged for the absence of the sweepers")
    await t.renew("w-1", [grant])
    await t.advance(2_000)
    await t.sweep()
    await t.finish(grant, 1)


async def lease_over(t: Twin) -> None:
    grant = await running(t, max_attempts=2)
    await lapse(t)
    must(t.record(grant.request).charged == 1, "a lapsed lease charges")
    await t.park("w-2")
    second = t.grant(grant.request)
    await t.begin(second)
    await lapse(t)
    must(t.record(grant.request).dead, "its attempts are used up")
    await t.finish(second, 1, b"late")
    await t.append(second, 1, b"late")


async def begun_first(t: Twin) -> None:
    """The first of two is begun, or taken back, before the other is read: that one still stands in the inbox."""
    await t.park("w-1")
    news = [t.new() for _ in range(3)]
    await t.enqueue(news[0])
    (first,) = await t.read_inbox("w-1")
    await t.enqueue(news[1])
    await t.enqueue(news[2])
    await t.begin(first)
    await t.cancel(news[2].id)
    (second,) = await t.read_inbox("w-1")
    await t.begin(second)


async def given_back(t: Twin) -> None:
    """Released: uncharged, first in line, the room is free again."""
    grant = await running(t)
    await t.park("w-1", accepting=False)
    waiting = t.new()
    await t.enqueue(waiting)
    await t.release(grant)
    await t.release(grant)
    await t.park("w-2", limit=10)
    must(t.record(grant.request).worker == "w-2", "given back stands before those that came later")
    await t.park("w-1")
    must(t.record(waiting.id).worker == "w-1", "the room is free again")
    await t.release(grant)


async def fault_after_fault(t: Twin) -> None:
    grant = await running(t, max_attempts=3)
    for _ in range(3):
        await t.begin(grant)
        await t.retry(grant)
        await t.retry(grant)
        await t.advance(1)
        await t.sweep()
        await t.advance(3_000)
        await t.park("w-1")
        await t.sweep()
        grant = t.grant(grant.request)
    must(t.record(grant.request).dead, "three faults are three attempts")


async def not_begun(t: Twin) -> None:
    """The grant goes back uncharged; its worker is passed over until it parks again, whatever others do to its room."""
    other = await running(t)
    new = t.new(max_attempts=1)
    await t.enqueue(new)
    await t.sweep()
    await t.advance(2_000)
    await t.sweep()
    await t.cancel(other.request)
    must(t.record(new.id).state is S.QUEUED and t.record(new.id).charged == 0, "not begun: back in line, uncharged")
    await t.begin(t.grant(new.id))
    await t.park("w-1")
    await t.begin(t.grant(new.id))


async def same_key_twice(t: Twin) -> None:
    first = t.new(idempotency="k", body_hash="a")
    await t.enqueue(first)
    await t.enqueue(first)
    await t.enqueue(t.new(idempotency="k", body_hash="a"))
    await t.enqueue(t.new(idempotency="k", body_hash="b"))


async def full_backlog(t: Twin) -> None:
    for _ in range(5):
        await t.enqueue(t.new())
    await t.park("w-1", slots=1)
    await t.enqueue(t.new())
    await t.enqueue(t.new())


async def engine_died(t: Twin) -> None:
    suspect = await running(t, "w-1")
    beside = await running(t, "w-1")
    unread = t.new()
    await t.enqueue(unread)
    await t.abandon("w-1", (suspect.request,))
    await t.abandon("w-1", (suspect.request,))
    await t.park("w-1")
    await t.park("w-2", slots=2)
    for request in (suspect.request, beside.request):
        await t.begin(t.grant(request))
    await t.abandon("w-2", (suspect.request,))
    must(t.record(suspect.request).dead and not t.record(beside.request).dead, "dead at the second crash, and it alone")


async def worker_unseen(t: Twin) -> None:
    await t.park("w-1", weight=9.0)
    await t.advance(3_000)
    new = t.new()
    await t.enqueue(new)
    must(t.record(new.id).state is S.QUEUED, "a worker not seen lately is passed over")
    await t.renew("w-1", [])
    await t.enqueue(t.new())
    await t.park("w-1")


async def best_of_the_parked(t: Twin) -> None:
    await t.park("w-1", weight=1.0)
    await t.park("w-2", weight=2.5)
    await t.park("w-3", weight=2.0, limit=15)
    for _ in range(5):
        await t.enqueue(t.new())


async def by_priority(t: Twin) -> None:
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
        await t.enqueue(t.new(priority=priority))
    for _ in range(3):
        await t.park("w-1", slots=1)
        grant = next(t.grant(r.id) for r in t.model.held_by("w-1"))
        await t.begin(grant)
        await t.finish(grant, 1)


async def long_waiting(t: Twin) -> None:
    await t.enqueue(t.new(priority=Priority.LOW))
    await t.advance(3 * t.rules.ageing_ms)
    await t.enqueue(t.new(priority=Priority.HIGH))
    await t.park("w-1", slots=1)


async def forgotten(t: Twin) -> None:
    grant = await running(t)
    await t.finish(grant, 1)
    await t.advance(t.rules.retention_ms)
    await t.sweep()
    must(not t.seen.one("requests"), "the list forgets what is no longer kept")


async def slow_gateway(t: Twin) -> None:
    grant = await running(t, reader="g-1")
    await t.read_feed("g-1")
    for n in range(1, 10):
        await t.append(grant, n, b"%d" % n)
    await t.read_feed("g-1")
    await t.finish(grant, 10)
    await t.read_feed("g-1")


async def gateway_away(t: Twin) -> None:
    grant = await running(t, reader="g-1")
    await t.append(grant, 1, b"one")
    await t.read_feed("g-1")
    await t.advance(30_000)
    await t.renew("w-1", [grant])
    await t.append(grant, 2, b"two")
    await t.keep_reading("g-1")
    await t.append(grant, 3, b"three")
    must(await t.read_feed("g-1"), "a gateway that was away is told to attach anew")


async def nobody_reads(t: Twin) -> None:
    grant = await running(t, reader="g-1", on_disconnect=OnDisconnect.CANCEL)
    for _ in range(35):
        await t.advance(1_000)
        await t.keep_reading("g-1")
        await t.renew("w-1", [grant])
        await t.sweep()
    await t.attach("g-2", grant.request)
    await t.detach("g-1", grant.request)
    await t.detach("g-2", grant.request)
    await t.advance(4_999)
    await t.renew("w-1", [grant])
    await t.sweep()
    must(not t.record(grant.request).ended, "the grace is not over")
    await t.advance(1)
    await t.sweep()
    must(t.record(grant.request).state is S.CANCELLED, "nobody reads it any more")


async def paused(t: Twin) -> None:
    await t.park("w-1", slots=1)
    await t.pause(True)
    await t.enqueue(t.new())
    await t.enqueue(t.new(priority=Priority.HIGH))
    await t.park("w-2", slots=1)
    await t.pause(False)


HOOK = {"webhook": "https://example.com/hook"}


async def told(t: Twin) -> None:
    """Whoever asked is owed a webhook by every kind of ending, once; nobody else is."""
    await t.sweep()
    done = await running(t, **HOOK)
    await t.finish(done, 1, b"one")
    await t.finish(done, 1, b"one")
    await t.cancel(done.request)
    unasked = await running(t)
    await t.finish(unasked, 1)
    await t.park("w-1", accepting=False)
    cancelled, late = t.new(**HOOK), t.new(**HOOK, deadline_ms=4_000)
    for new in (cancelled, late):
        await t.enqueue(new)
    await t.cancel(cancelled.id)
    await t.cancel(cancelled.id)
    await t.advance(4_000)
    await t.sweep()
    await t.sweep()
    dead = await running(t, max_attempts=1, **HOOK)
    await t.retry(dead)
    await t.retry(dead)
    must(len(t.model.owed) == 4, f"four endings were asked for: {t.model.owed}")


async def told_of_some(t: Twin) -> None:
    """Only endings that were asked for are told."""
    failures = {**HOOK, "webhook_events": "failed expired"}
    done = await running(t, **failures)
    await t.finish(done, 1)
    failed = await running(t, **failures)
    await t.finish(failed, 1, state=S.FAILED)
    must(list(t.model.owed) == [failed.request], f"one was asked for: {t.model.owed}")


async def tried_again(t: Twin) -> None:
    """Whoever takes one may die with it: it is offered again. A noted try moves it on, a delivery ends it."""
    grant = await running(t, **HOOK)
    await t.finish(grant, 1)
    must(await t.take_owed(), "an ending that was asked for is offered at once")
    must(not await t.take_owed(), "and to one alone")
    await t.advance(30_000)
    must(await t.take_owed(), "who took it was not heard of: it is offered again")
    await t.note_try(grant.request, 1, Verdict.LATER, 1_000)
    await t.advance(1_000)
    must(await t.take_owed() == {grant.request: 0}, "what was put off is no try")
    await t.note_try(grant.request, 1, Verdict.AGAIN, 5_000)
    await t.note_try(grant.request, 1, Verdict.AGAIN, 60_000)
    await t.advance(5_000)
    must(await t.take_owed() == {grant.request: 1}, "its next try has come")
    await t.note_try(grant.request, 1, Verdict.DELIVERED)
    await t.note_try(grant.request, 3, Verdict.GIVEN_UP)
    await t.advance(60_000)
    must(not await t.take_owed(), "a delivery ends it")
    hopeless = await running(t, **HOOK)
    await t.finish(hopeless, 1)
    await t.take_owed()
    await t.note_try(hopeless.request, 1, Verdict.GIVEN_UP)
    await t.advance(60_000)
    must(not await t.take_owed(), "what is given up is owed no more")
    await t.note_try("s0." + "f" * 32, 1, Verdict.DELIVERED)
