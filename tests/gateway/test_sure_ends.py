"""Where replicas are waited for: an end or an absence is told only when they have it, too, and one that a failover took
back was never told. The replicas are played; real ones: tests/system/test_sentinel.py.
"""

import pytest

from dispatch.faults import NotReplicated
from dispatch.messages import (
    Attached,
    AttachStatus,
    EntryKind,
    InferenceRequest,
    InputKind,
    LogEntry,
    NewRequest,
    Sampling,
    encode,
    new_id,
)
from dispatch.queue import Queue
from dispatch.settings import Durability, RedisSettings
from dispatch.states import RequestState
from gateway.streaming import Feed
from tests.gateway.helpers import MODEL, serving, settings_for

UNKNOWN = "s0." + "0" * 32


def entry(seq: int, kind: EntryKind = EntryKind.CHUNK) -> LogEntry:
    return LogEntry("r", seq, 1, kind, b"{}", f"{seq:016x}")


class Replicated:
    """A queue whose replicas answer `word` when asked whether an end stands."""

    replicated = True

    def __init__(self, word: bool | Exception) -> None:
        self.word = word
        self.asked = 0
        self.log: tuple[LogEntry, ...] = ()
        self.status = {False: AttachStatus.OK, True: AttachStatus.OK}

    async def stands(self, request: str, chain: str) -> bool:
        self.asked += 1
        if isinstance(self.word, Exception):
            raise self.word
        return self.word

    async def attach(self, request: str, gateway: str, *, after_seq: int, after_chain: str, sure: bool = False) -> Attached:
        log = tuple(e for e in self.log if e.seq > after_seq)
        return Attached(self.status[sure], RequestState.RUNNING, True, log)


def fed(queue: Replicated) -> Feed:
    return Feed(queue, queue, buffer_bytes=1000)  # type: ignore[arg-type]


async def test_an_end_is_held_back_until_the_replicas_have_it() -> None:
    queue, ended = Replicated(NotReplicated("one is missing")), list[str]()
    feed = fed(queue)
    feed.on_end = ended.append
    reader = feed.subscribe("r", attached=True)
    reader.offer(entry(1))
    reader.offer(entry(2, EntryKind.END))
    assert [e.seq for e in await reader.next(1) if e] == [1], "what came before is told at once"
    assert await reader.next(0.05) == []
    assert queue.asked and not reader.ended and not ended
    queue.word = True
    assert [e.kind for e in await reader.next(5) if e] == [EntryKind.END]
    assert reader.ended and ended == ["r"]


async def test_an_end_that_a_failover_took_back_is_never_told_and_the_stream_goes_on() -> None:
    queue = Replicated(False)
    reader = fed(queue).subscribe("r", attached=True)
    reader.offer(entry(1))
    reader.offer(entry(2, EntryKind.END))
    queue.log = (entry(1), entry(2), entry(3))
    items = [item for _ in range(2) for item in await reader.next(1)]
    assert [(e.seq, e.kind) for e in items if e] == [(n, EntryKind.CHUNK) for n in (1, 2, 3)]
    assert None not in items and not reader.ended
    queue.word = True
    reader.offer(entry(4, EntryKind.END))
    assert [e.seq for e in await reader.next(1) if e] == [4]


async def test_an_absence_is_asked_for_again_where_the_replicas_agree() -> None:
    queue = Replicated(True)
    queue.status[False] = AttachStatus.MISSING
    reader = fed(queue).subscribe("r")
    await reader.attach()
    queue.status[True] = AttachStatus.GONE
    reader = fed(queue).subscribe("r")
    with pytest.raises(Exception, match="no longer kept"):
        await reader.attach()


async def test_without_replicas_nobody_is_told_of_an_end_or_an_absence(redis: object, server_url: str, queue: Queue) -> None:
    """A master that was replaced has none left; who asks it hears 503, and what is not over is told as it is."""
    redis_settings = RedisSettings(url=server_url, durability=Durability.REPLICATED, replica_wait_ms=20)
    alive, ended = (new(new_id()) for _ in range(2))
    for request in (alive, ended):
        await queue.enqueue(request)
    await queue.cancel(ended.id)
    async with serving(settings_for(server_url).model_copy(update={"redis": redis_settings})) as gateway:
        told = await gateway.client.get(f"/v1/requests/{alive.id}")
        assert told.status_code == 200 and told.json()["status"] == "queued"
        for path in (ended.id, f"{ended.id}/result", f"{ended.id}/events", UNKNOWN, f"{UNKNOWN}/events"):
            refused = await gateway.client.get(f"/v1/requests/{path}")
            assert refused.status_code == 503 and refused.headers["retry-after"], path
            assert refused.json()["error"]["code"] == "not_replicated"
        assert (await gateway.client.delete(f"/v1/requests/{alive.id}")).status_code == 503
    async with serving(settings_for(server_url)) as gateway:
        assert (await gateway.client.get(f"/v1/requests/{ended.id}")).json()["status"] == "cancelled"
        assert (await gateway.client.get(f"/v1/requests/{UNKNOWN}")).status_code == 404


def new(request: str) -> NewRequest:
    stored = encode(InferenceRequest(request, MODEL, InputKind.CHAT, Sampling(3)))
    return NewRequest(request, MODEL, stored, InputKind.CHAT, 16, 60_000)
