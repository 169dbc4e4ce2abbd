"""The laws without HTTP and engine: enqueue, inbox, begin, finish, feed. `python -m bench.dispatch.direct worker|client URL`.

The worker does with the queue what worker/ does: it parks each second, reads its inbox, begins and finishes each grant.
"""

import asyncio
import sys

import uvloop

from bench.dispatch.loop import serve_rounds
from dispatch import messages as m
from dispatch.queue import Queue
from dispatch.redis_client import BLOCK_MS, connect
from dispatch.rules import QueueRules

_RULES = QueueRules()
_MODEL = "demo"
_PREFILL_PER_S = 1e9  # no-op work: what a worker that is this fast has measured
_GATEWAY = "g-bench"
_LAST = b'{"text":"done","tokens":[1]}'
_DETAIL = b'{"finish_reason":"stop","usage":{"prompt_tokens":100,"completion_tokens":1,"total_tokens":101}}'


async def work(url: str) -> None:
    queue, inbox = Queue(connect(url), _RULES), Queue(connect(url, max_connections=2), _RULES)
    tasks: set[asyncio.Task[None]] = set()
    held: dict[str, m.Grant] = {}

    async def beat() -> None:
        while True:
            await queue.park(m.Offer("w-1", _MODEL, 10**9, 10**6, 1_000.0, prefill_weight=_PREFILL_PER_S))
            await queue.renew("w-1", list(held.values()))
            await asyncio.sleep(1.0)

    async def one(grant: m.Grant) -> None:
        held[grant.request] = grant
        begun = await queue.begin(grant)
        if begun is not None:
            await queue.finish(grant, begun.seq + 1, _LAST, _DETAIL)
        del held[grant.request]

    tasks.add(asyncio.create_task(beat()))
    after = "0"
    while True:
        after, words = await inbox.read_inbox("w-1", after, block_ms=BLOCK_MS)
        for word in words:
            if isinstance(word, m.Grant):
                task = asyncio.create_task(one(word))
                tasks.add(task)
                task.add_done_callback(tasks.discard)


class Client:
    def __init__(self, url: str) -> None:
        self._queue, self._reading = Queue(connect(url), _RULES), Queue(connect(url, max_connections=2), _RULES)
        self._ends: dict[str, asyncio.Future[None]] = {}

    async def read(self) -> None:
        position, trimmed = "0", "0"
        loop = asyncio.get_running_loop()
        trim_at = loop.time() + 1
        while True:
            position, entries = await self._reading.read_feed(_GATEWAY, position, block_ms=BLOCK_MS)
            for entry in entries:
                if entry is None:
                    assert not self._ends, "the feed was cut"
                elif entry.kind is m.EntryKind.END:
                    end = self._ends.pop(entry.request, None)
                    if end is not None:
                        end.set_result(None)
            if loop.time() >= trim_at and position != trimmed:
                await self._reading.trim_feed(_GATEWAY, position)
                trimmed, trim_at = position, loop.time() + 1

    async def keep(self) -> None:
        while True:
            await self._queue.keep_reading(_GATEWAY)
            await asyncio.sleep(5)

    async def call(self) -> None:
        request = m.new_id()
        asked = m.InferenceRequest(request, _MODEL, m.InputKind.COMPLETION, m.Sampling(1), prompt="w" * 400, cost_tokens=128)
        new = m.NewRequest(
            request, _MODEL, m.encode(asked), m.InputKind.COMPLETION, 128, deadline_ms=600_000, reader=_GATEWAY,
            on_disconnect=m.OnDisconnect.CANCEL, prompt_tokens=100, strategy="pull",
        )  # fmt: skip
        end = self._ends[request] = asyncio.get_running_loop().create_future()
        await self._queue.enqueue(new)
        await end


async def _client(url: str) -> None:
    client = Client(url)
    tasks = [asyncio.create_task(client.keep()), asyncio.create_task(client.read())]
    await asyncio.sleep(0.2)
    await serve_rounds(client.call)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    uvloop.run(work(sys.argv[2]) if sys.argv[1] == "worker" else _client(sys.argv[2]))
