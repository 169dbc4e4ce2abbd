"""Records and logs of version 1 (a field for each word, a stream as log) go on as any others."""

from typing import Any

import pytest

from dispatch import messages as m
from dispatch.keys import ShardKeys
from dispatch.looking import read_log
from dispatch.records import plain_fields
from dispatch.states import RequestState
from tests.dispatch.invariants import chain_of, log_of
from tests.dispatch.twin import Twin
from tests.dispatch.walks import lapse, running

KEYS = ShardKeys("s0")


async def make_record_older(twin: Twin, request: str) -> None:
    """Store it as version 1 did."""
    redis: Any = twin.redis
    key = KEYS.request(request)
    fields = plain_fields(await redis.hgetall(key))
    fields = {"attempt": "0", "seq": "0", "chain": m.first_chain(request), "readers": "", "reader_look": "0"} | fields
    ttl = await redis.pttl(key)
    await redis.delete(key)
    await redis.hset(key, mapping=fields | {"v": "1"})
    await redis.pexpire(key, ttl)


async def make_log_older(twin: Twin, request: str) -> None:
    """The same with its log."""
    redis: Any = twin.redis
    log = KEYS.output(request)
    ttl = await redis.pttl(log)
    elements = [element.decode() for element in await redis.lrange(log, 0, -1)]
    await redis.delete(log)
    for seq, attempt, kind, data, chain in log_of(elements):
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
    chain = chain_of(old.request, [b"one"])[-1]
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
