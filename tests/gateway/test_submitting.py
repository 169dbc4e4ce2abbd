"""A submit whose reply is lost or refused: what this gateway tells Redis about being its reader."""

import asyncio
from typing import Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from dispatch import messages as m
from dispatch.faults import NotReplicated
from dispatch.keys import ShardKeys
from dispatch.states import RequestState
from tests.gateway.helpers import MODEL, FakeWorker, Running, Tap, until

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
KEYS = ShardKeys("s0")


@pytest.mark.parametrize("fault", [RedisTimeoutError("no reply"), NotReplicated("nobody has it")], ids=["no_reply", "no_replica"])
async def test_of_unknown_fate_is_left_so_that_nobody_works_for_nobody(
    gateway: Running, worker: FakeWorker, redis: object, fault: Exception
) -> None:
    Tap(worker)
    queue, stored = gateway.gateway.queue, set()
    enqueue = queue.enqueue

    async def without_a_reply(new: m.NewRequest) -> m.Enqueued:
        await enqueue(new)
        stored.add(new.id)
        raise fault

    queue.enqueue = without_a_reply  # type: ignore[method-assign]
    answer = await gateway.client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503 and "may have been accepted" in answer.json()["detail"]
    (request,) = stored

    async def left() -> bool:
        readers = await redis.hget(KEYS.request(request), "readers")  # type: ignore[attr-defined]
        return bool(readers == b"")

    await until(left)
    assert gateway.gateway.feed.open_readers == 0


async def test_whose_log_is_over_and_not_kept_is_told_so_at_once(gateway: Running, worker: FakeWorker) -> None:
    tap = Tap(worker)
    queue: Any = gateway.gateway.queue
    attach = queue.attach

    async def over(*_: object, **__: object) -> m.Attached:
        return m.Attached(m.AttachStatus.OK, RequestState.COMPLETED, False, ())

    for route, headers in (("/v1/requests", {"Prefer": "wait=2"}), ("/v1/chat/completions", {})):
        worker.seen.clear()
        queue.attach = attach
        asked = asyncio.create_task(gateway.client.post(route, json=CHAT, headers=headers))
        await until(lambda: worker.seen)
        queue.attach = over
        gateway.gateway.feed.doubt_all()
        answer = await asked
        assert answer.status_code == 410 and answer.json()["error"]["code"] == "stream_expired", answer.text
    assert answer.headers["x-should-retry"] == "false" and gateway.gateway.feed.open_readers == 0
    await tap.to(3)


@pytest.mark.parametrize("status", [m.EnqueueStatus.FULL, m.EnqueueStatus.MISMATCH])
async def test_what_was_never_stored_is_not_left(gateway: Running, worker: FakeWorker, status: m.EnqueueStatus) -> None:
    Tap(worker)
    queue = gateway.gateway.queue
    detached: list[str] = []

    async def refuse(new: m.NewRequest) -> m.Enqueued:
        return m.Enqueued(status, new.id, RequestState.QUEUED, 0, 0)

    async def detach(request: str, *_: object, **__: object) -> None:
        detached.append(request)

    queue.enqueue, queue.detach = refuse, detach  # type: ignore[method-assign]
    answer = await gateway.client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code in (422, 429)
    await gateway.gateway.feed.settle()
    assert detached == [] and gateway.gateway.feed.open_readers == 0
