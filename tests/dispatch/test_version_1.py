"""Records and logs of version 1 (a field for each word, a stream as log) go on as any others."""

from typing import Any

import pytest

from dispatch import messages as m
from dispatch.keys import ShardKeys
from dispatch.looking import read_log
from dispatch.records import plain_fields
from dispatch.states import RequestState
from gateway.native_events import resume_from
from tests.dispatch.invariants import chain_of, log_of
from tests.dispatch.twin import Twin
from tests.dispatch.walks import lapse, running

KEYS = ShardKeys("s0")


async def make_record_older(twin: Twin, request: str) -> None:
    """Store it as version 1 did, its log chained from where that one began; the log stays a list."""
    redis: Any = twin.redis
    key, log = KEYS.request(request), KEYS.output(request)
    entries = log_of([element.decode() for element in await redis.lrange(log, 0, -1)])
    chains = chain_of(request, [data.encode() for *_, data, _ in entries], "1")
    for n, ((_, attempt, kind, data, _), chain) in enumerate(zip(entries, chains, strict=True)):
        await redis.lset(log, n, f"{attempt} {kind} {chain} {data}")
    fields = {"attempt": "0", "seq": "0", "readers": "", "reader_look": "0"} | plain_fields(await redis.hgetall(key))
    fields |= {"v": "1", "chain": [m.older_first_chain(request), *chains][-1]}
    ttl = await redis.pttl(key)
    await redis.delete(key)
    await redis.hset(key, mapping=fields)
    await redis.pexpire(key, ttl)


async def make_log_older(twin: Twin, request: str) -> None:
    """Its log as version 1 stored it."""
    redis: Any = twin.redis
    log = KEYS.output(request)
    ttl = await redis.pttl(log)
    entries = log_of([element.decode() for element in await redis.lrange(log, 0, -1)])
    await redis.delete(log)
    for seq, attempt, kind, data, chain in entries:
        await redis.xadd(log, {"k": kind, "d": data, "h": chain}, id=f"{seq}-{attempt}")
    await redis.pexpire(log, ttl)


async def test_one_that_waits_is_granted_and_ends(twin: Twin) -> None:
    new = twin.new(tenant="of two words")
    await twin.enqueue(new)
    await make_record_older(twin, new.id)
    record = await twin.queue.record(new.id)
    assert record is not None and (record.state, record.tenant, record.deadline_at_ms) == (
        RequestState.QUEUED, "of two words", twin.now + new.deadline_ms,
    )  # fmt: skip
    await twin.park("w-1")
    await twin.read_inbox("w-1")
    grant = twin.grant(new.id)
    assert await twin.begin(grant)
    await twin.append(grant, 1, b"one")
    await twin.finish(grant, 2, b"two")
    ending = await twin.queue.ending(new.id)
    assert ending is not None and ending == (await twin.queue.record(new.id)).ending  # type: ignore[union-attr]


async def test_one_that_says_all_at_its_end_had_a_first_output(twin: Twin) -> None:
    new = twin.new()
    await twin.enqueue(new)
    await make_record_older(twin, new.id)
    await twin.park("w-1")
    grant = twin.grant(new.id)
    await twin.begin(grant)
    await twin.finish(grant, 1, b"all")
    ending = await twin.queue.ending(new.id)
    assert ending is not None and ending.first_output_at_ms == twin.now


async def test_the_id_before_its_first_event_is_one_of_it(twin: Twin) -> None:
    request = twin.new().id
    assert (
        resume_from(f"0-{m.older_first_chain(request)}", request)
        == resume_from(f"0-{m.first_chain(request)}", request)
        == (0, "")
    )


async def test_one_that_ran_goes_on_elsewhere_with_all_it_said(twin: Twin) -> None:
    old = await running(twin)
    await twin.append(old, 1, b"one")
    await twin.append(old, 2, b"two")
    await make_record_older(twin, old.request)
    await lapse(twin)
    await twin.park("w-2")
    new = twin.grant(old.request)
    await make_log_older(twin, old.request)
    assert [e.data for e in await twin.queue.output(old.request)] == [b"one", b"two"]
    await twin.begin(new)
    chain = chain_of(old.request, [b"one"], "1")[-1]
    found = await twin.queue.attach(old.request, "", after_seq=1, after_chain=chain)
    assert [(e.seq, e.attempt, e.kind) for e in found.entries] == [(2, 1, m.EntryKind.CHUNK), (3, 2, m.EntryKind.NOTE)]
    await twin.append(new, 4, b"four")
    await twin.finish(new, 5)


@pytest.mark.parametrize("how", ["attach", "result"])
async def test_one_that_ended_is_still_read(twin: Twin, how: str) -> None:
    grant = await running(twin)
    await twin.finish(grant, 1, b"one")
    await make_record_older(twin, grant.request)
    await make_log_older(twin, grant.request)
    if how == "attach":
        found = await twin.queue.attach(grant.request, "")
        assert found.status is m.AttachStatus.OK and not found.live
        log = list(found.entries)
        await twin.check()  # it is as version 2 would have left it
    else:
        log = await read_log(twin.redis, KEYS.output(grant.request), grant.request)
    assert [(e.seq, e.kind) for e in log] == [(1, m.EntryKind.CHUNK), (2, m.EntryKind.END)]
    assert await twin.queue.ending(grant.request) is not None
