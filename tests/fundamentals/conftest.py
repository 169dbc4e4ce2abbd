"""A queue on a real server and its own clock, with the spans of a fault short enough to wait for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dispatch import messages as m
from dispatch.queue import Queue
from dispatch.rules import QueueRules


@pytest.fixture
def rules() -> QueueRules:
    return QueueRules(backoff_ms=20)


@pytest.fixture
def ask(queue: Queue) -> Callable[..., Awaitable[m.Enqueued]]:
    """A client asks for ten tokens."""

    async def asked(**more: Any) -> m.Enqueued:
        request = m.new_id()
        wanted = m.InferenceRequest(request, "demo", m.InputKind.COMPLETION, m.Sampling(10), prompt="Once upon a time")
        given: dict[str, Any] = {"cost_tokens": 14, "deadline_ms": 60_000, **more}
        return await queue.enqueue(m.NewRequest(id=request, model="demo", input=m.encode(wanted), kind=wanted.kind, **given))

    return asked


@pytest.fixture
def next_grant(queue: Queue) -> Callable[[str], Awaitable[m.Grant]]:
    """What a worker's one blocking read brings next."""
    places: dict[str, str] = {}

    async def read(worker: str) -> m.Grant:
        async with asyncio.timeout(5):
            while True:
                places[worker], words = await queue.read_inbox(worker, places.get(worker, "0"), block_ms=1_000)
                for word in words:
                    if isinstance(word, m.Grant):
                        return word

    return read


@pytest.fixture
def sweep_until(queue: Queue) -> Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]:
    async def swept(done: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(5):
            while not await done():
                await queue.sweep()
                await asyncio.sleep(0.005)

    return swept
