"""Walks about room that is kept for a request, and prompts that wait to be prefilled: directed, as those of walks.py."""

from dispatch import messages as m
from dispatch.scores import Strategy
from dispatch.states import RequestState
from tests.dispatch.twin import Twin, must
from tests.dispatch.walks import running

S = RequestState


async def pass_time(t: Twin, ms: int, *workers: str) -> None:
    """The workers named beat meanwhile, and keep what they hold."""
    for _ in range(ms // 500):
        await t.advance(500)
        for worker in workers:
            w = t.model.workers[worker]
            await t.park(worker, w.limit, w.slots, w.weight)
            await t.renew(worker, [t.grant(r.id) for r in t.model.held_by(worker)])


async def overtaken(t: Twin) -> tuple[list[m.Grant], m.NewRequest]:
    """w-1 runs two small ones; a big one waits, and the first small one behind it still overtakes it."""
    small = [await running(t, cost=30), await running(t, cost=30)]
    big = t.new(80)
    await t.enqueue(big)
    await pass_time(t, t.rules.pin_ms - 500, "w-1")
    over = t.new(10)
    await t.enqueue(over)
    must(t.record(over.id).state is S.GRANTED, "for a while small ones may overtake")
    await t.read_inbox("w-1")
    await t.begin(t.grant(over.id))
    await t.finish(t.grant(over.id), 1)
    return small, big


async def kept_room(t: Twin) -> None:
    small, big = await overtaken(t)
    await pass_time(t, 500, "w-1")
    must(t.record(big.id).pinned == "w-1", "then room is kept for it")
    later = t.new(10)
    await t.enqueue(later)
    must(t.record(later.id).state is S.QUEUED, "what is kept is not given to others")
    await t.finish(small[0], 1)
    must(t.record(big.id).state is S.QUEUED and t.record(later.id).state is S.QUEUED, "70 are free, 80 are needed")
    await t.finish(small[1], 1)
    must(t.record(big.id).state is S.GRANTED and t.record(later.id).state is S.GRANTED, "both fit now")


async def taken_elsewhere(t: Twin) -> None:
    _, big = await overtaken(t)
    await pass_time(t, 500, "w-1")
    later = t.new(10)
    await t.enqueue(later)
    await t.park("w-2", limit=80)
    must(t.record(big.id).worker == "w-2" and t.record(later.id).worker == "w-1", "w-1 keeps no room any more")


async def cancelled_while_pinned(t: Twin) -> None:
    _, big = await overtaken(t)
    await pass_time(t, 500, "w-1")
    later = t.new(10)
    await t.enqueue(later)
    await t.pause(True)
    await t.cancel(big.id)
    await t.pause(False)
    must(t.record(later.id).state is S.GRANTED, "nobody needs that room any more")


async def keeper_gone(t: Twin) -> None:
    """The keeper is not seen any more: another one keeps room. It comes back, and has none to keep."""
    _, big = await overtaken(t)
    await pass_time(t, 500, "w-1")
    await t.advance(t.rules.worker_seen_ms)
    await t.park("w-2", limit=20)
    must(t.record(big.id).pinned == "w-1", "w-2 could never hold it")
    await t.park("w-3", limit=40)
    small = t.new(30)
    await t.enqueue(small)
    await t.read_inbox("w-3")
    other = t.grant(small.id)
    await t.begin(other)
    await t.park("w-3")
    await pass_time(t, 500, "w-3")
    must(t.record(big.id).pinned == "w-3", "w-3 keeps room in its place")
    await t.park("w-1")
    later = t.new(40)
    await t.enqueue(later)
    must(t.record(later.id).worker == "w-1", "w-1 is free again")
    await t.finish(other, 1)
    must(t.record(big.id).worker == "w-3", "and it is w-3's")


async def keeper_shrinks(t: Twin) -> None:
    _, big = await overtaken(t)
    await pass_time(t, 500, "w-1")
    await t.park("w-1", limit=75)
    must(not t.model.workers["w-1"].pin, "it could not hold it any more")
    await t.park("w-1")
    must(t.record(big.id).pinned == "w-1", "now it could")


async def paused_while_pinned(t: Twin) -> None:
    small, big = await overtaken(t)
    await pass_time(t, 500, "w-1")
    await t.pause(True)
    for grant in small:
        await t.finish(grant, 1)
    await t.pause(False)
    must(t.record(big.id).state is S.GRANTED, "it was kept for it all along")


async def oldest_first(t: Twin) -> None:
    """The big after the pinned one does not come before a small one that is older."""
    small, big = await overtaken(t)
    await pass_time(t, 500, "w-1")
    middle, second = t.new(25), t.new(80)
    await t.enqueue(middle)
    await t.enqueue(second)
    await pass_time(t, 6_000, "w-1")
    for grant in small:
        await t.finish(grant, 1)
    must(t.record(big.id).state is S.GRANTED and t.model.workers["w-1"].pin == middle.id, "the older of those that wait")
    await t.begin(t.grant(big.id))
    await t.finish(t.grant(big.id), 1)
    must(t.record(middle.id).state is S.GRANTED and t.model.workers["w-1"].pin == second.id, "then the next")


async def older_first(t: Twin) -> None:
    """Room is kept for two, at two workers: the first that is free takes the older one."""
    await t.park("w-1", limit=40)
    first = t.new(40)
    await t.enqueue(first)
    await t.park("w-2", limit=40)
    second = t.new(40)
    await t.enqueue(second)
    older, younger = t.new(40), t.new(30)
    for new in (older, younger):
        await t.enqueue(new)
    for request in (first, second):
        await t.begin(t.grant(request.id))
    await pass_time(t, t.rules.pin_ms + 500, "w-1", "w-2")
    await t.park("w-1", limit=50)
    await t.park("w-2", limit=50)
    must(t.record(older.id).pinned == "w-1" and t.record(younger.id).pinned == "w-2", "each keeps room for one")
    await t.park("w-2", limit=40)
    await t.finish(t.grant(second.id), 1)
    must(t.record(older.id).worker == "w-2", "the older one comes first")
    must(t.record(younger.id).state is S.QUEUED and t.record(younger.id).pinned == "w-2", "the younger keeps its place")
    await t.finish(t.grant(first.id), 1)
    must(t.record(younger.id).worker == "w-1", "and is taken where there is room first")


async def prefill(t: Twin) -> None:
    """A worker that still has prompts to prefill stands behind one that has not; with the first output it comes forward."""
    await t.park("w-1", weight=2.0)
    await t.park("w-2", weight=1.9)
    first = t.new(prompt_tokens=900)
    await t.enqueue(first)
    must(t.record(first.id).worker == "w-1", "the faster")
    for _ in range(2):
        await t.enqueue(t.new(prompt_tokens=1))
    must(len(t.model.held_by("w-2")) == 2, "the faster has 900 tokens to prefill")
    await t.begin(t.grant(first.id))
    await t.append(t.grant(first.id), 1, b"one")
    await t.append(t.grant(first.id), 2, b"two")
    last = t.new(prompt_tokens=1)
    await t.enqueue(last)
    must(t.record(last.id).worker == "w-1", "it has prefilled them")
    await t.cancel(last.id)


async def turn_by_turn(t: Twin) -> None:
    for worker, weight in (("w-1", 4.0), ("w-2", 1.0)):
        await t.park(worker, slots=40, weight=weight)
    for _ in range(6):
        await t.enqueue(t.new(1, strategy=Strategy.WEIGHTED_ROUND_ROBIN))
    must(len(t.model.held_by("w-2")) == 1, "one in five")
    for _ in range(15):
        await t.enqueue(t.new(1, strategy=Strategy.WEIGHTED_ROUND_ROBIN))
    await t.park("w-3", weight=1.0)
    for _ in range(6):
        await t.enqueue(t.new(1, strategy=Strategy.ROUND_ROBIN))
        await t.enqueue(t.new(1, strategy=Strategy.WEIGHTED_ROUND_ROBIN))


async def session(t: Twin) -> None:
    for worker in ("w-1", "w-2", "w-3"):
        await t.park(worker)
    for _ in range(9):
        await t.enqueue(t.new(1, strategy=Strategy.SESSION, session="a"))
    must(max(len(t.model.held_by(w)) for w in t.model.workers) <= 4, "a hot session spills")


async def session_given_back(t: Twin) -> None:
    """A session's worker that gives a request back is not parked at that moment: another one takes it."""
    await t.park("w-1")
    new = t.new(strategy=Strategy.SESSION, session="a")
    await t.enqueue(new)
    await t.park("w-2", weight=0.1)
    await t.begin(t.grant(new.id))
    await t.release(t.grant(new.id))
    must(t.record(new.id).worker == "w-2", "not the one that gave it back")
