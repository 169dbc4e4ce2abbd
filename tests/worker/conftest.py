"""Helpers for the worker's tests: requests put in line, and waiting for what must come."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from dispatch.messages import EntryKind, InferenceRequest, InputKind, NewRequest, Sampling, encode, new_id
from dispatch.pricing import cost_tokens, prompt_tokens
from dispatch.queue import Queue
from dispatch.states import ENDINGS, RequestState


class Client:
    """What a gateway does, without HTTP."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    async def ask(self, prompt: str = "hello", max_tokens: int = 20, *, model: str = "demo", **more: Any) -> str:
        """Put a completion in line; its id."""
        chosen = {name: more.pop(name) for name in ("stop", "temperature") if name in more}
        sampling = Sampling(max_tokens=max_tokens, **chosen)
        kind = more.pop("kind", InputKind.COMPLETION)
        body = {"ignore_eos": True} if more.pop("ignore_eos", True) else {}
        queued = {name: more.pop(name) for name in ("max_attempts", "deadline_ms") if name in more}
        request = InferenceRequest(new_id(), model, kind, sampling, prompt=prompt, body=body, **more)
        cost = cost_tokens(prompt_tokens(request), max_tokens)
        await self.queue.enqueue(
            NewRequest(request.id, model, encode(request), kind, cost, **{"deadline_ms": 60_000, **queued}),
        )
        return request.id

    async def state(self, request: str) -> RequestState:
        record = await self.queue.record(request)
        assert record is not None
        return record.state

    async def ended(self, request: str, timeout_s: float = 15) -> RequestState:
        """Sweep until it has ended."""

        async def has_ended() -> bool:
            await self.queue.sweep()
            return await self.state(request) in ENDINGS

        await until(has_ended, timeout_s)
        return await self.state(request)

    async def runs(self, request: str) -> None:
        """Wait until a worker has begun it."""

        async def has_begun() -> bool:
            return await self.state(request) is RequestState.RUNNING

        await until(has_begun)

    async def wrote(self, request: str, entries: int = 1) -> None:
        """Wait until that many chunks were written."""

        async def has_written() -> bool:
            return len(await self.queue.output(request)) >= entries

        await until(has_written)

    async def answer(self, request: str) -> tuple[str, tuple[int, ...], dict[str, Any]]:
        """The whole text, its tokens, and what the end says. The log must be dense."""
        entries = await self.queue.output(request)
        assert [e.seq for e in entries] == list(range(1, len(entries) + 1))
        chunks = [msgspec.json.decode(e.data) for e in entries if e.kind is EntryKind.CHUNK]
        end = msgspec.json.decode(entries[-1].data)
        assert [e.kind for e in entries].index(EntryKind.END) == len(entries) - 1
        text = "".join(c.get("text", "") for c in chunks)
        return text, tuple(t for c in chunks for t in c.get("tokens", ())), end


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 15) -> None:
    """Wait for it, or fail."""
    give_up_at = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < give_up_at, f"waited {timeout_s} s in vain"
        await asyncio.sleep(0.01)


@pytest.fixture
def client(queue: Queue) -> Client:
    return Client(queue)
