"""What a gateway remembers of what it accepted: no longer than needed, no more than it can hold."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from msgspec.structs import replace
from redis.exceptions import OutOfMemoryError, ResponseError

from dispatch import messages as m
from dispatch.faults import NotReplicated
from dispatch.history import ServerHistory
from dispatch.keys import ShardKeys
from dispatch.queue import Queue
from dispatch.states import RequestState
from gateway import promises as promises_module
from gateway.promises import Promises
from gateway.watching import Watch
from tests.gateway.helpers import MODEL, FakeWorker, Running, Tap, serving, settings_for, until

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


async def test_only_another_history_makes_it_look_and_only_the_lost_come_back(
    queue: Queue, redis: object, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        assert ended.id in promises and deleted.id in promises, "an ending has to stand for a while"
        monkeypatch.setattr(promises_module, "_ENDING_STANDS_S", 0.0)
        await promises._tidy()
        assert len(promises) == 2 and lost.id in promises and kept.id in promises
        assert await queue.whereabouts([deleted.id, kept.id]) == [RequestState.CANCELLED, RequestState.QUEUED]
        assert await queue.record(deleted.id) is None, "deleted is deleted"
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await queue.purge(MODEL)


async def test_an_ending_that_another_history_never_had_is_no_end(queue: Queue, redis: object) -> None:
    watch = await watch_of(HERE, LATER)
    promises = Promises(queue, watch)
    watch.on_change = promises.history_changed
    await queue.enqueue(new(1))
    promises.remember(new(1))
    await queue.cancel(new(1).id)
    await promises._tidy()  # what the old master says in its last moment
    await redis.flushall()  # type: ignore[attr-defined]
    running = asyncio.create_task(promises.run())
    try:
        await watch.look()
        found = await until(lambda: queue.record(new(1).id))
        assert found.state is RequestState.QUEUED
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


@contextlib.asynccontextmanager
async def kept_by(queue: Queue, *requests: m.NewRequest) -> AsyncIterator[Promises]:
    """Promises of these, at work; they look once after a change."""
    promises = Promises(queue, await watch_of(HERE))
    for each in requests:
        promises.remember(each)
    running = asyncio.create_task(promises.run())
    try:
        yield promises
        assert not running.done(), "it goes on for ever"
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await queue.purge(MODEL)


@pytest.fixture
def one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promises_module, "_LOOKS_AFTER_S", (0.0,))


def refusing(queue: Queue, request: str, answer: Exception | m.EnqueueStatus, until_it: Callable[[], bool]) -> list[str]:
    """`queue` refuses this request until something is so. Returns the tries, as they come."""
    tries: list[str] = []
    enqueue = queue.enqueue

    async def refuse(new: m.NewRequest) -> m.Enqueued:
        if new.id == request:
            tries.append(new.id)
            if not until_it():
                if isinstance(answer, Exception):
                    raise answer
                return m.Enqueued(answer, new.id, RequestState.QUEUED, 0, 0)
        return await enqueue(new)

    queue.enqueue = refuse  # type: ignore[method-assign]
    return tries


@pytest.mark.parametrize(
    "answer",
    [NotReplicated("no replica has it"), OutOfMemoryError("at its limit"), m.EnqueueStatus.FULL],
    ids=["not_replicated", "out_of_memory", "full"],
)
async def test_one_that_is_refused_does_not_hold_up_the_others_and_is_tried_again(
    queue: Queue, redis: object, one_look: None, answer: Exception | m.EnqueueStatus
) -> None:
    first, second = new(1), new(2)
    taken = asyncio.Event()
    tries = refusing(queue, first.id, answer, taken.is_set)
    async with kept_by(queue, first, second) as promises:
        promises.history_changed()
        assert await until(lambda: queue.record(second.id))
        await until(lambda: len(tries) >= 2)
        assert await promises.unsettled(), "one may still come back"
        taken.set()
        assert await until(lambda: queue.record(first.id))
        await until(lambda: not promises._changed.is_set())
        assert not await promises.unsettled()


async def test_what_cannot_be_given_back_is_given_up_after_its_deadline_or_a_fault_that_stays(
    queue: Queue, redis: object, one_look: None
) -> None:
    late, broken, third = replace(new(1), deadline_ms=1), new(2), new(3)
    refusing(queue, late.id, m.EnqueueStatus.FULL, lambda: False)
    refusing(queue, broken.id, ResponseError("WRONGTYPE it is"), lambda: False)
    async with kept_by(queue, late, broken, third) as promises:
        promises.history_changed()
        await until(lambda: not promises._changed.is_set())
        assert not await promises.unsettled()
        assert late.id not in promises and broken.id not in promises
        assert await queue.record(third.id)


async def test_another_change_in_the_middle_is_looked_into_too(queue: Queue, redis: object, one_look: None) -> None:
    only = new(1)
    async with kept_by(queue, only) as promises:
        whereabouts, lost = queue.whereabouts, []

        async def once_lost_after_the_look(requests: list[str]) -> list[RequestState | None]:
            found = await whereabouts(requests)
            if found == [RequestState.QUEUED] and not lost:
                lost.append(only.id)
                await lose(redis, only.id)
                promises.history_changed()
            return found

        await queue.enqueue(only)
        queue.whereabouts = once_lost_after_the_look  # type: ignore[method-assign,assignment]
        promises.history_changed()
        await until(lambda: lost and not promises._changed.is_set())
        assert await queue.record(only.id)


async def test_tidying_goes_round_and_leaves_the_oldest_first(
    queue: Queue, redis: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promises_module, "_TIDY_AT_ONCE", 1)
    monkeypatch.setattr(promises_module, "_ENDING_STANDS_S", 0.0)
    promises = Promises(queue, await watch_of(HERE), most_bytes=3 * 2024)
    for n in (1, 2, 3):
        await queue.enqueue(new(n, size=1000))
        promises.remember(new(n, size=1000))
    await promises._tidy()
    promises.remember(new(4, size=1000))
    assert new(1).id not in promises and new(2).id in promises, "the oldest goes"
    await queue.cancel(new(3).id)
    for _ in range(4):
        await promises._tidy()
    assert new(3).id not in promises and len(promises) == 2
    await queue.purge(MODEL)


async def test_a_repeat_at_another_gateway_makes_that_one_promise_too(
    gateway: Running, worker: FakeWorker, queue: Queue, redis: object, server_url: str
) -> None:
    tap = Tap(worker)
    headers = {"idempotency-key": "once"}
    request = (await gateway.client.post("/v1/requests", json=BODY, headers=headers)).json()["id"]
    async with serving(settings_for(server_url)) as other:
        assert (await other.client.post("/v1/requests", json=BODY, headers=headers)).json()["id"] == request
        promises = other.gateway.promises
        assert request in promises and len(promises) == 1
        await lose(redis, request)
        async for key in redis.scan_iter("*idempotency:*"):  # type: ignore[attr-defined]
            await redis.delete(key)  # type: ignore[attr-defined]
        promises.history_changed()
        found = await until(lambda: queue.input(request))
        assert (found.id, found.prompt) == (request, BODY["prompt"])
        await tap.to(9)
        await until(lambda: _is_over(queue, request))
    async with serving(settings_for(server_url)) as third:
        assert (await third.client.post("/v1/requests", json=BODY, headers=headers)).json()["id"] == request
        assert len(third.gateway.promises) == 0, "it has ended"


async def _is_over(queue: Queue, request: str) -> bool:
    return await queue.whereabouts([request]) == [RequestState.COMPLETED]
