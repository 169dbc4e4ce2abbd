"""How a request finds a worker, and how its answer comes back. One concept a test."""

from collections.abc import Awaitable, Callable

from dispatch import messages as m
from dispatch.queue import Queue
from dispatch.states import Priority, RequestState

Ask = Callable[..., Awaitable[m.Enqueued]]
NextGrant = Callable[[str], Awaitable[m.Grant]]
ROOM = m.Offer("w-1", "demo", limit_tokens=100, slots=4, weight=1.0)


async def test_a_request_meets_a_parked_worker(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.park(ROOM)
    asked = await ask()
    assert asked.state is RequestState.GRANTED
    assert (await next_grant("w-1")).request == asked.id


async def test_a_waiting_request_is_taken_by_a_worker_that_parks(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    asked = await ask()
    assert (asked.state, asked.position) == (RequestState.QUEUED, 1)
    parked = await queue.park(ROOM)
    assert parked.granted == 1
    assert (await next_grant("w-1")).request == asked.id


async def test_a_worker_takes_only_what_fits(queue: Queue, ask: Ask) -> None:
    big, small = await ask(cost_tokens=500), await ask(cost_tokens=50)
    parked = await queue.park(ROOM)
    assert (parked.granted, parked.room_tokens) == (1, 50)
    assert (await queue.record(small.id)).state is RequestState.GRANTED
    assert (await queue.record(big.id)).state is RequestState.QUEUED


async def test_begin_hands_over_what_to_compute(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.park(ROOM)
    asked = await ask()
    begun = await queue.begin(await next_grant("w-1"))
    assert begun.request.prompt == "Once upon a time"
    assert (begun.attempt, begun.seq) == (1, 0)
    assert (await queue.record(asked.id)).state is RequestState.RUNNING


async def test_the_output_streams_to_a_reader(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.park(ROOM)
    asked = await ask(reader="g-1")
    grant = await next_grant("w-1")
    await queue.begin(grant)
    await queue.append(grant, 1, b'{"text":"there was"}')
    await queue.finish(grant, 2, b'{"text":" a king"}', b'{"finish_reason":"stop"}')
    _, feed = await queue.read_feed("g-1", "0", block_ms=1_000)
    told = [entry for entry in feed if entry is not None and entry.request == asked.id]
    assert [(e.seq, e.kind) for e in told] == [(1, m.EntryKind.CHUNK), (2, m.EntryKind.CHUNK), (3, m.EntryKind.END)]
    assert [e.data for e in told[:2]] == [b'{"text":"there was"}', b'{"text":" a king"}']


async def test_a_late_reader_gets_the_log_and_then_the_feed(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.park(ROOM)
    asked = await ask()
    grant = await next_grant("w-1")
    await queue.begin(grant)
    await queue.append(grant, 1, b"one")
    attached = await queue.attach(asked.id, "g-2")
    assert attached.live
    assert [e.data for e in attached.entries] == [b"one"]
    await queue.append(grant, 2, b"two")
    _, feed = await queue.read_feed("g-2", "0", block_ms=1_000)
    assert [e.data for e in feed if e is not None] == [b"two"]


async def test_a_reader_resumes_where_it_stopped(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.park(ROOM)
    asked = await ask()
    grant = await next_grant("w-1")
    await queue.begin(grant)
    for n in (1, 2, 3):
        await queue.append(grant, n, b"%d" % n)
    had = (await queue.output(asked.id))[0]
    resumed = await queue.attach(asked.id, "g-2", after_seq=had.seq, after_chain=had.chain)
    assert [e.data for e in resumed.entries] == [b"2", b"3"]


async def test_a_completed_request_leaves_room_for_the_next(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    await queue.park(m.Offer("w-1", "demo", limit_tokens=14, slots=1, weight=1.0))
    first, second = await ask(), await ask()
    grant = await next_grant("w-1")
    await queue.begin(grant)
    await queue.finish(grant, 1, b"done", b"{}")
    assert (await queue.record(first.id)).state is RequestState.COMPLETED
    assert (await next_grant("w-1")).request == second.id


async def test_high_goes_before_normal_before_low(queue: Queue, ask: Ask, next_grant: NextGrant) -> None:
    asked = {priority: (await ask(priority=priority)).id for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH)}
    taken = []
    for worker in ("w-1", "w-2", "w-3"):
        await queue.park(m.Offer(worker, "demo", limit_tokens=100, slots=1, weight=1.0))
        taken.append((await next_grant(worker)).request)
    assert taken == [asked[Priority.HIGH], asked[Priority.NORMAL], asked[Priority.LOW]]
