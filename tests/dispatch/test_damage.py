"""What others wrote into our keys, or what the server forgot, does not stop the rest."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from dispatch import messages as m
from dispatch.keys import ShardKeys
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.scripts import NAMES, compose
from dispatch.states import Priority, RequestState
from tests.dispatch import walks
from tests.dispatch.test_planted_bugs import WALKS
from tests.dispatch.twin import MODEL, Twin

KEYS = ShardKeys("s0")
LINE = KEYS.queue(MODEL, Priority.NORMAL)


async def state(twin: Twin, request: str) -> RequestState:
    record = await twin.queue.record(request)
    assert record is not None
    return record.state


class Forgetful(Twin):
    async def check(self) -> None:
        await self.redis.function_flush()
        await self.redis.script_flush()
        await super().check()


@pytest.mark.parametrize(
    "walk", [walks.whole_life, walks.zombie, walks.engine_died, walks.nobody_reads], ids=lambda w: w.__name__
)
async def test_script_flush_at_any_time_is_harmless(twin: Twin, walk: walks.Walk) -> None:
    assert walk in WALKS
    await walk(Forgetful(twin.redis, walks.RULES))


class WithoutFunctions(Twin):
    """The commands of functions are not allowed to it."""

    async def check(self) -> None:
        assert not await self.redis.function_list()
        await super().check()


async def test_where_functions_are_refused_the_same_text_runs_as_scripts(redis: Redis, server_url: str) -> None:
    await redis.function_flush()
    rights = ("reset", "on", "nopass", "~*", "+@all", "-fcall", "-function", "+function|list")
    await redis.execute_command("ACL", "SETUSER", "plain", *rights)
    try:
        async with connect(server_url.replace("unix://", "unix://plain:x@")) as plain:
            await walks.whole_life(WithoutFunctions(plain, walks.RULES, {n: compose(n, walks.RULES) for n in NAMES}))
    finally:
        await redis.execute_command("ACL", "DELUSER", "plain")


async def test_strange_entries_in_a_line_are_passed_over(twin: Twin, queue: Queue) -> None:
    redis = twin.redis
    await redis.xadd(LINE, {"junk": "x"})
    await redis.xadd(LINE, {"id": "s0.unknown", "cost": "ten"})
    await redis.xadd(LINE, {"id": "s0.unknown", "cost": "1"})
    first, second = twin.new(), twin.new()
    await queue.enqueue(first)
    await queue.enqueue(second)
    parked = await queue.park(m.Offer("w-1", MODEL, 100, 4, 1.0))
    assert (parked.granted, parked.held, parked.room_tokens) == (2, 2, 80)
    assert await redis.xlen(LINE) == 0
    assert (await queue.stats(MODEL)).totals["bad_entries"] == 3


async def test_an_entry_that_stands_for_a_request_held_elsewhere_is_dropped(twin: Twin) -> None:
    queue, redis = twin.queue, twin.redis
    await queue.park(m.Offer("w-1", MODEL, 10, 1, 1.0))
    held = twin.new()
    await queue.enqueue(held)
    entry = await redis.xadd(LINE, {"id": held.id, "cost": 10})
    await redis.zadd(KEYS.sizes(MODEL, Priority.NORMAL), {entry: 10})
    assert (await queue.park(m.Offer("w-2", MODEL, 100, 4, 1.0))).granted == 0
    record = await queue.record(held.id)
    assert record is not None
    assert (record.attempt, record.worker) == (1, "w-1")


@pytest.mark.parametrize("damage", ["another type", "another's hash", "no fields that matter"])
async def test_a_damaged_record_does_not_stop_the_others(twin: Twin, damage: str) -> None:
    """Neither the sweeper nor the workers: it is dropped where it is met."""
    queue, redis = twin.queue, twin.redis
    hurt, well = twin.new(deadline_ms=5_000), twin.new(deadline_ms=5_000)
    await queue.enqueue(hurt)
    await queue.enqueue(well)
    await redis.delete(KEYS.request(hurt.id))
    if damage == "another type":
        await redis.set(KEYS.request(hurt.id), "not a hash", ex=60)
    elif damage == "another's hash":
        await redis.hset(KEYS.request(hurt.id), "colour", "blue")
    else:
        await redis.hset(KEYS.request(hurt.id), mapping={"state": "running", "deadline": "soon"})
    if damage != "another type":
        await redis.expire(KEYS.request(hurt.id), 60)
    parked = await queue.park(m.Offer("w-1", MODEL, 100, 1, 1.0))
    assert parked.granted == 1
    assert await state(twin, well.id) is RequestState.GRANTED
    twin.now += 5_000
    assert await queue.sweep() == 1
    assert await state(twin, well.id) is RequestState.EXPIRED
    assert await redis.zcard(KEYS.timers) == 0


@pytest.mark.parametrize("said", [0, 2])
async def test_an_append_that_failed_halfway_is_not_there_twice(twin: Twin, said: int) -> None:
    grant = await walks.running(twin, reader="g-1")
    for n in range(1, said + 1):
        await twin.append(grant, n, b"before")
    feed = KEYS.feed("g-1")
    await twin.redis.delete(feed)
    await twin.redis.set(feed, "no stream", px=60_000)
    for _ in range(2):
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await twin.queue.append(grant, said + 1, b"next")
    await twin.redis.delete(feed)
    await twin.append(grant, said + 1, b"next")
    await twin.finish(grant, said + 2, b"last")


async def test_a_repeated_finish_of_a_damaged_record_is_still_a_dup(twin: Twin) -> None:
    queue = twin.queue
    await queue.park(m.Offer("w-1", MODEL, 100, 4, 1.0))
    new = twin.new()
    await queue.enqueue(new)
    _, (grant,) = await queue.read_inbox("w-1", "0", block_ms=1_000)
    assert isinstance(grant, m.Grant)
    await queue.begin(grant)
    assert await queue.finish(grant, 1, b"last", b"{}") is m.WriteStatus.OK
    assert await twin.redis.hdel(KEYS.request(new.id), "ended_at") == 1
    assert await queue.finish(grant, 1, b"last", b"{}") is m.WriteStatus.DUP


async def test_strange_words_in_an_inbox_are_passed_over(twin: Twin) -> None:
    queue, redis = twin.queue, twin.redis
    await queue.park(m.Offer("w-1", MODEL, 100, 4, 1.0))
    for junk in ({"x": "y"}, {"grant": b"\xff 1 n 1"}, {"grant": "s0.1 one n 1"}, {"grant": "s0.1 1"}, {"stop": "s0.1"}):
        await redis.xadd(KEYS.inbox("w-1"), junk)
    new = twin.new()
    await queue.enqueue(new)
    _, words = await queue.read_inbox("w-1", "0", block_ms=1_000)
    assert [word.request for word in words] == [new.id]


async def test_an_inbox_that_nobody_reads_stays_small(twin: Twin) -> None:
    """A worker that lives for weeks is told of many endings; each word is read once and kept by nobody."""
    queue = twin.queue
    await queue.park(m.Offer("w-1", MODEL, 100, 4, 1.0))
    for _ in range(1_500):
        new = twin.new()
        await queue.enqueue(new)
        await queue.cancel(new.id)
    assert await twin.redis.xlen(KEYS.inbox("w-1")) <= 1_200


async def test_a_worker_whose_keys_are_gone_leaves_its_requests_to_the_sweep(twin: Twin) -> None:
    queue = twin.queue
    grant = await walks.running(twin)
    await queue.append(grant, 1, b"one")
    await twin.redis.delete(KEYS.worker("w-1"), KEYS.held("w-1"), KEYS.inbox("w-1"))
    waiting = twin.new()
    await queue.enqueue(waiting)
    assert await state(twin, waiting.id) is RequestState.QUEUED
    for _ in range(7):
        await queue.sweep()
        twin.now += 2_000
    assert await state(twin, grant.request) is RequestState.QUEUED
    assert (await queue.park(m.Offer("w-2", MODEL, 100, 4, 1.0))).granted == 2
    assert await queue.append(grant, 2, b"late") is m.WriteStatus.FENCED
