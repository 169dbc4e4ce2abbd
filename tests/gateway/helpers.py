"""A gateway in this process on a free port, and a worker made of the queue's calls alone."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from dispatch import messages as m
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.reports import Heartbeat, ModelCard, TokenizerFiles
from dispatch.settings import GatewaySettings, QueueSettings, RedisSettings, Settings
from dispatch.states import RequestState, WorkerState
from dispatch.tasks import cancelled
from gateway.app import build
from gateway.context import Gateway
from gateway.serve import GatewayServer, bind

MODEL = "demo"


async def until(what: Callable[[], Awaitable[Any] | Any], within_s: float = 5.0) -> Any:
    """The first true value of `what()`; fails after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        value = what()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def settings_for(url: str, *, keys: tuple[str, ...] = (), queue: dict[str, Any] | None = None, **gateway: Any) -> Settings:
    return Settings(
        api_keys=keys,
        redis=RedisSettings(url=url),
        gateway=GatewaySettings(port=0, **{"drain_timeout_s": 0, **gateway}),
        queue=QueueSettings(**(queue or {})),
    )


@dataclass
class Running:
    """A gateway that answers."""

    url: str
    server: GatewayServer
    gateway: Gateway
    client: httpx2.AsyncClient


@contextlib.asynccontextmanager
async def serving(settings: Settings, headers: dict[str, str] | None = None) -> AsyncIterator[Running]:
    app = build(settings)
    bound = bind(settings)
    server = GatewayServer(app, settings)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[bound]))
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    try:
        await until(lambda: server.started or task.done())
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
            yield Running(url, server, app.state.gateway, client)
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 10)


def words_of(count: int) -> list[str]:
    return [f"w{n} " for n in range(count)]


@dataclass
class FakeWorker:
    """Grants to words: each request is answered with `plan(request)`, a chunk each; `gate` holds it back before a chunk."""

    queue: Queue
    fleet: Fleet
    model: str = MODEL
    plan: Callable[[m.InferenceRequest], list[str]] = lambda request: words_of(min(3, request.sampling.max_tokens))
    id: str = "w-1"
    limit: int = 100_000
    engine: str = "sim"
    context: int = 4096
    files: TokenizerFiles | None = None
    max_cost: int = 50_000
    gate: Callable[[m.InferenceRequest, int], Awaitable[None]] | None = None
    error: dict[str, str] | None = None
    seen: list[m.InferenceRequest] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def publish(self) -> None:
        card = ModelCard(
            self.model, self.engine, self.context, 0, self.max_cost, kinds=tuple(m.InputKind), created_at_s=1_700_000_000
        )
        await self.fleet.put_card(card, self.files)

    async def beat(self) -> None:
        now = int(time.time() * 1000)
        beat = Heartbeat(self.id, "host", 1, self.model, self.engine, WorkerState.READY, self.limit, 64, 100.0, 0, 0, now, now)
        await self.fleet.beat(beat, 5000)

    async def park(self) -> m.Parked:
        return await self.queue.park(m.Offer(self.id, self.model, self.limit, 64, 100.0))

    async def run(self) -> None:
        """Serve for ever; every second it is heard of."""
        await self.publish()
        after = "0"
        while True:
            await self.beat()
            await self.park()
            await self.queue.renew(self.id, [])
            after, words = await self.queue.read_inbox(self.id, after, block_ms=500)
            for word in words:
                if isinstance(word, m.Grant):
                    self.tasks[word.request] = asyncio.create_task(self.work(word))
                else:
                    self.stopped.append(word.request)
                    if word.request in self.tasks:
                        self.tasks[word.request].cancel()

    async def work(self, grant: m.Grant) -> None:
        begun = await self.queue.begin(grant)
        if begun is None:
            return
        request, seq = begun.request, begun.seq
        self.seen.append(request)
        words = self.plan(request)
        for n, word in enumerate(words):
            if self.gate is not None:
                await self.gate(request, n)
            seq += 1
            data = json.dumps({"text": word, "tokens": [n]}, ensure_ascii=False).encode()
            if await self.queue.append(grant, seq, data) is m.WriteStatus.FENCED:
                return
        usage = {"prompt_tokens": len(request.prompt_token_ids) or 1, "completion_tokens": len(words)}
        detail: dict[str, Any] = {"finish_reason": "stop", "usage": usage}
        state = RequestState.COMPLETED
        if self.error is not None:
            detail, state = {"error": self.error}, RequestState.FAILED
        await self.queue.finish(grant, seq + 1, b"", json.dumps(detail).encode(), state=state)


@contextlib.asynccontextmanager
async def working(worker: FakeWorker) -> AsyncIterator[FakeWorker]:
    task = asyncio.create_task(worker.run())
    try:
        await until(lambda: worker.fleet.card(worker.model))
        yield worker
    finally:
        await cancelled(task, *worker.tasks.values())


class Tap:
    """Lets a fake worker write its chunks up to a number."""

    def __init__(self, worker: FakeWorker) -> None:
        self._open = 0
        self._moved = asyncio.Condition()
        worker.gate = self._gate

    async def to(self, chunks: int) -> None:
        async with self._moved:
            self._open = chunks
            self._moved.notify_all()

    async def _gate(self, _: object, n: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: n < self._open)


@dataclass(frozen=True)
class Event:
    id: str
    name: str
    data: str


async def events_of(response: httpx2.Response) -> AsyncIterator[Event]:
    """An SSE body as a client reads it: comments dropped."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line:
            if "data" in fields:
                yield Event(fields.get("id", ""), fields.get("event", "message"), fields["data"])
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
