"""Walks about closed workers: they were granted so much to prefill that they take no more for now (docs/decisions/0022)."""

from dispatch import messages as m
from dispatch.states import Priority, RequestState
from tests.dispatch.pin_walks import pass_time
from tests.dispatch.twin import Twin, must
from tests.dispatch.walks import running

S = RequestState


async def closed(t: Twin, worker: str, weight: float = 1.0) -> m.Grant:
    """`worker` runs a prompt so long that it takes no more."""
    await t.park(worker, weight=weight)
    new = t.new(prompt_tokens=int(2.8 * weight) + 1, max_attempts=1)  # 0.7 s: it prefills 4 tokens in the time of one
    await t.enqueue(new)
    must(t.record(new.id).worker == worker, "with nothing to prefill it takes a prompt however long")
    await t.begin(t.grant(new.id))
    return t.grant(new.id)


async def reopened(t: Twin) -> None:
    """Its first output opens it, and what waits comes at once: as much as opens no more."""
    grant = await closed(t, "w-1")
    waiting = [t.new(prompt_tokens=2) for _ in range(3)]
    for new in waiting:
        await t.enqueue(new)
    await t.park("w-1")
    must(all(t.record(new.id).state is S.QUEUED for new in waiting), "it takes no more, nor at a heartbeat")
    await t.append(grant, 1, b"one")
    taken = [t.record(new.id).state is S.GRANTED for new in waiting]
    must(taken == [True, True, False], f"it takes until it is closed again: {taken}")
    await t.append(grant, 2, b"two")
    must(t.record(waiting[2].id).state is S.QUEUED, "only a first output opens")
    first = t.grant(waiting[0].id)
    await t.begin(first)
    await t.finish(first, 1)
    must(t.record(waiting[2].id).state is S.GRANTED, "so does an ending without any output")


async def waits_for_the_better(t: Twin) -> None:
    """A closed one that would serve it more than 2.1 times as well is waited for; else any that is open takes it."""
    fast = await closed(t, "w-1", weight=1_000.0)
    await t.park("w-2", weight=50.0)
    new, other = t.new(prompt_tokens=1), t.new(prompt_tokens=1)
    await t.enqueue(new)
    must(t.record(new.id).state is S.QUEUED, "w-1 would serve it much better")
    await t.park("w-2", weight=50.0)
    must(t.record(new.id).state is S.QUEUED, "and w-2 still does not take it")
    await t.park("w-3", weight=500.0)
    must(t.record(new.id).worker == "w-3", "w-3 is nearly as good")
    await t.park("w-3", weight=500.0, accepting=False)
    await t.enqueue(other)
    must(t.record(other.id).state is S.QUEUED, "w-1 is waited for again")
    await t.abandon("w-1")
    must(t.record(other.id).worker == "w-2", "w-1 is gone")
    await t.append(fast, 1, b"late")


async def the_better_takes_too_much(t: Twin) -> None:
    """What it takes when it opens makes it worse: who waited for it goes elsewhere in the same script."""
    fast = await closed(t, "w-1", weight=1_000.0)
    await t.park("w-2", weight=200.0)
    long, short = t.new(prompt_tokens=6_000), t.new(prompt_tokens=1)
    await t.enqueue(long)
    await t.advance(2_000)
    await t.enqueue(short)
    must(t.record(long.id).state is S.QUEUED and t.record(short.id).state is S.QUEUED, "both wait for w-1")
    await t.append(fast, 1, b"one")
    must(t.record(long.id).worker == "w-1" and t.record(short.id).worker == "w-2", "w-1 has much to do again")


async def not_for_ever(t: Twin) -> None:
    """Whoever is waited for may never open: after a while any takes it."""
    await closed(t, "w-1", weight=1_000.0)
    await t.park("w-2", weight=50.0)
    new = t.new(prompt_tokens=1)
    await t.enqueue(new)
    await pass_time(t, t.rules.patience_ms - 500, "w-1", "w-2")
    must(t.record(new.id).state is S.QUEUED, "it waits for w-1")
    await pass_time(t, 500, "w-1", "w-2")
    must(t.record(new.id).worker == "w-2", "it has waited enough")


async def unseen_while_closed(t: Twin) -> None:
    """Nobody waits for one that is not seen any more."""
    await closed(t, "w-1", weight=1_000.0)
    await t.park("w-2", weight=50.0)
    new = t.new(prompt_tokens=1)
    await t.enqueue(new)
    await pass_time(t, t.rules.worker_seen_ms, "w-2")
    must(t.record(new.id).worker == "w-2", "w-1 is not seen any more")


async def shorter_first(t: Twin) -> None:
    """Each second of prompt makes a request a quarter of a second younger."""
    news = [t.new(prompt_tokens=prompt) for prompt in (8, 4, 0)]
    await t.enqueue(news[0])
    await t.advance(200)
    await t.enqueue(news[1])
    await t.advance(3_000)
    await t.enqueue(news[2])
    for first in (1, 0, 2):
        must(t.record(news[first].id).state is S.QUEUED, "not yet its turn")
        await t.park("w-1", slots=1)
        must(t.record(news[first].id).state is S.GRANTED, f"by the time it counts as come {first} is next")
        await t.begin(t.grant(news[first].id))
        await t.park("w-1", slots=1, accepting=False)
        await t.finish(t.grant(news[first].id), 1)


async def silent_to_the_end(t: Twin) -> None:
    """An engine that says all at once: its ending, with all it said, opens its worker as a first output does."""
    grant = await closed(t, "w-1")
    waiting = [t.new(prompt_tokens=3) for _ in range(2)]
    for new in waiting:
        await t.enqueue(new)
    await t.finish(grant, 1, b"all of it")
    must(t.record(waiting[0].id).state is S.GRANTED, "the prompt is done")
    must(t.record(waiting[1].id).state is S.QUEUED, "it is closed again")
    await t.begin(t.grant(waiting[0].id))
    await t.retry(t.grant(waiting[0].id))
    must(t.record(waiting[1].id).state is S.GRANTED, "so does every way of leaving it")


async def speed_unknown(t: Twin) -> None:
    """A worker that does not know how fast it prefills is never closed."""
    await t.park("w-1", prefill_weight=0.0)
    for _ in range(3):
        new = t.new(prompt_tokens=1_000)
        await t.enqueue(new)
        must(t.record(new.id).worker == "w-1", "it takes what it has room for")


async def other_strategies(t: Twin) -> None:
    """They know of no closed workers: one with room is as good as any, and takes them from the line."""
    await closed(t, "w-1")
    at_once = [t.new(prompt_tokens=5, strategy=strategy) for strategy in ("least_connections", "session", "round_robin")]
    for new in at_once:
        await t.enqueue(new)
        must(t.record(new.id).worker == "w-1", f"{new.strategy} has room")
    pulls = t.new(prompt_tokens=1)
    low = t.new(64, prompt_tokens=1, strategy="power_of_two", priority=Priority.LOW)
    high = t.new(65, prompt_tokens=1, strategy="power_of_two", priority=Priority.HIGH)
    for new in (pulls, low, high):
        await t.enqueue(new)
        must(t.record(new.id).state is S.QUEUED, "by pull it is closed, and these are too big")
    await t.begin(t.grant(at_once[0].id))
    await t.finish(t.grant(at_once[0].id), 1)
    must(t.record(high.id).state is S.GRANTED, "its room grew, and high is before low")
    small = t.new(60, strategy="least_connections")
    await t.enqueue(small)
    await t.cancel(high.id)
    must(t.record(pulls.id).state is S.QUEUED, "it is closed still")
    must(t.record(small.id).state is S.GRANTED and t.record(low.id).state is S.QUEUED, "normal is before low")
    await t.pause(True)
    await t.cancel(small.id)
    await t.pause(False)
    must(t.record(low.id).state is S.GRANTED, "resumed, it comes to a closed worker, too")


async def others_by_age(t: Twin) -> None:
    """By another strategy a long prompt makes nobody younger."""
    news = [t.new(prompt_tokens=8, strategy="least_connections"), t.new(prompt_tokens=0, strategy="least_connections")]
    for new in news:
        await t.enqueue(new)
        await t.advance(100)
    await t.park("w-1", slots=1)
    must(t.record(news[0].id).state is S.GRANTED, "the oldest is next")


async def others_fill_the_better(t: Twin) -> None:
    """What other strategies grant to a closed worker makes it worse: who waits for it goes elsewhere in the same script."""
    await closed(t, "w-1", weight=1_000.0)
    await t.park("w-2", weight=100.0)
    new = t.new(prompt_tokens=1)
    await t.enqueue(new)
    must(t.record(new.id).state is S.QUEUED, "w-1 would serve it much better")
    other = t.new(10, prompt_tokens=100_000, strategy="weighted_least_connections")
    await t.enqueue(other)
    must(t.record(other.id).worker == "w-1", "it has the fewest by its speed")
    must(t.record(new.id).worker == "w-2", "now w-1 has more to do than is worth waiting for")


async def a_suspect_finds_it(t: Twin) -> None:
    """A suspect of a crash has a closed worker kept free for it where no other is."""
    suspect = await running(t, "w-2", prompt_tokens=1)
    grant = await closed(t, "w-1")
    await t.abandon("w-2", (suspect.request,))
    must(t.record(suspect.request).reserved == "w-1", "it is kept free")
    await t.append(grant, 1, b"one")
    await t.finish(grant, 2)
    must(t.record(suspect.request).worker == "w-1", "it runs alone")


async def pinned_while_closed(t: Twin) -> None:
    """Who has its room kept at a worker comes as soon as it fits, closed or not."""
    first, second = await running(t, cost=30, prompt_tokens=2), await running(t, cost=30)
    big, small = t.new(60), t.new(1)
    await t.enqueue(big)
    await pass_time(t, t.rules.pin_ms + 500, "w-1")
    must(t.record(big.id).pinned == "w-1", "room is kept for it")
    await t.park("w-1", prefill_weight=1.0)
    await t.enqueue(small)
    await t.finish(second, 1)
    must(t.record(big.id).state is S.GRANTED, "it waited enough")
    must(t.record(small.id).state is S.QUEUED, "for others it has two tokens to prefill, and is slow")
    await t.append(first, 1, b"one")
    must(t.record(small.id).state is S.GRANTED, "it is open")
