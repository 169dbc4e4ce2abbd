"""What a gateway remembers of what it accepted: no longer than needed, no more than it can hold."""

import asyncio
import contextlib
from dataclasses import replace

from dispatch import messages as m
from dispatch.history import ServerHistory
from dispatch.keys import ShardKeys
from dispatch.queue import Queue
from dispatch.states import RequestState
from gateway.promises import Promises
from gateway.watching import Watch
from tests.gateway.helpers import MODEL, FakeWorker, Running, Tap, until

BODY = {"model": MODEL, "prompt": "hello", "max_tokens": 8}
KEYS = ShardKeys("s0")


def new(n: int, size: int = 10) -> m.NewRequest:
    return m.NewRequest(f"s0.{n:032x}", MODEL, b"x" * size, m.InputKind.COMPLETION, 10, 3_600_000)


async def watch_of(*histories: ServerHistory) -> Watch:
    """A watch that sees these, one a look, and the last again and again."""
    seen = list(histories)

    async def look() -> ServerHistory:
        return seen.pop(0) if len(seen) > 1 else seen[0]

    watch = Watch(look)
    await watch.look()
    return watch


HERE, LATER = ServerHistory("run-1", "repl-1", True), ServerHistory("run-2", "repl-1", True)


async def lose(redis: object, request: str) -> None:
    for key in (KEYS.request(request), KEYS.input(request), KEYS.output(request)):
        await redis.delete(key)  # type: ignore[attr-defined]
    for line in (KEYS.timers, KEYS.requests):
        await redis.zrem(line, request)  # type: ignore[attr-defined]


async def test_an_accepted_request_is_kept_until_its_end_is_read(gateway: Running, worker: FakeWorker) -> None:
    tap = Tap(worker)
    request = (await gateway.client.post("/v1/requests", json=BODY)).json()["id"]
    reading = asyncio.create_task(gateway.client.get(f"/v1/requests/{request}/events"))
    await tap.to(1)
    assert request in gateway.gateway.promises
    await tap.to(9)
    await reading
    assert request not in gateway.gateway.promises


async def test_cancelled_refused_and_replayed_ones_are_not_kept(gateway: Running, worker: FakeWorker) -> None:
    Tap(worker)
    headers = {"idempotency-key": "once"}
    request = (await gateway.client.post("/v1/requests", json=BODY, headers=headers)).json()["id"]
    assert (await gateway.client.post("/v1/requests", json=BODY, headers=headers)).json()["id"] == request
    assert (await gateway.client.post("/v1/requests", json={**BODY, "max_tokens": 3}, headers=headers)).status_code == 422
    assert len(gateway.gateway.promises) == 1
    await gateway.client.delete(f"/v1/requests/{request}")
    assert len(gateway.gateway.promises) == 0


async def test_memory_is_bounded_and_the_newest_stay(queue: Queue) -> None:
    promises = Promises(queue, await watch_of(HERE), most_bytes=20_000)
    for n in range(100):
        promises.remember(new(n, size=1000))
        promises.remember(new(n, size=1000))
    assert len(promises) == 20_000 // 2024
    assert new(99).id in promises and new(0).id not in promises


async def test_only_another_history_makes_it_look_and_only_the_lost_come_back(queue: Queue, redis: object) -> None:
    watch = await watch_of(HERE, HERE, LATER)
    promises = Promises(queue, watch)
    watch.on_change = promises.history_changed
    lost, kept, ended, deleted = new(1), new(2), new(3), new(4)
    for each in (lost, kept, ended, deleted):
        await queue.enqueue(each)
        promises.remember(each)
    await queue.cancel(ended.id)
    await queue.cancel(deleted.id)
    await lose(redis, lost.id)
    await lose(redis, deleted.id)  # its tombstone stands
    running = asyncio.create_task(promises.run())
    try:
        assert not await promises.unsettled()
        assert await queue.record(lost.id) is None
        assert await promises.unsettled(), "the third look sees another history"
        found = await until(lambda: queue.record(lost.id))
        assert found.state is RequestState.QUEUED and found.deadline_at_ms - found.created_at_ms <= 3_600_000
        await until(lambda: len(promises) == 2)
        assert await queue.whereabouts([deleted.id, kept.id]) == [RequestState.CANCELLED, RequestState.QUEUED]
        assert await queue.record(deleted.id) is None, "deleted is deleted"
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await queue.purge(MODEL)


async def test_one_that_was_sent_again_with_its_key_is_done_once(queue: Queue, redis: object) -> None:
    watch = await watch_of(HERE, LATER)
    promises = Promises(queue, watch)
    watch.on_change = promises.history_changed
    first = replace(new(1), idempotency="key", body_hash="body")
    promises.remember(first)  # accepted, and lost with the key
    await queue.enqueue(replace(first, id=new(2).id))
    running = asyncio.create_task(promises.run())
    try:
        await watch.look()
        await until(lambda: first.id not in promises)
        assert await queue.record(first.id) is None
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await queue.purge(MODEL)
