"""What grows, each on a server of its own: a backlog that waits, and workers that are parked. One round of either gives the
server's CPU (INFO cpu, us) a call. Never here: sizes, rounds, ratios, pictures.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Any

from dispatch import messages as m
from dispatch.entries import inbox_word
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules

AT_ONCE = 64
_RULES = QueueRules(max_backlog=10**7, worker_seen_ms=10**8, lease_ms=10**8, grant_ms=10**8)
_COST_TOKENS = 160
_CHUNK = b'{"text":" and on","tokens":[5,6]}'
_DETAIL = b'{"finish_reason":"stop","usage":{"prompt_tokens":100,"completion_tokens":60,"total_tokens":160}}'


class Subject(ABC):
    """A server that holds so many of something."""

    def __init__(self, url: str, size: int) -> None:
        self._redis: Any = connect(url)
        self._queue = Queue(self._redis, _RULES)
        self._size = size
        self._round = 0

    async def close(self) -> None:
        await self._redis.aclose()

    @abstractmethod
    async def fill(self) -> None:
        """Make it hold them."""

    @abstractmethod
    async def measure(self) -> dict[str, float]:
        """One round: what each call cost, by its name."""

    def _new(self) -> m.NewRequest:
        asked = m.InferenceRequest(m.new_id(), "demo", m.InputKind.COMPLETION, m.Sampling(64), prompt="w" * 400, cost_tokens=160)
        return m.NewRequest(
            asked.id, "demo", m.encode(asked), asked.kind, _COST_TOKENS, deadline_ms=3_600_000, prompt_tokens=100, strategy="pull"
        )

    async def _enqueue(self, count: int) -> list[m.Enqueued]:
        return await asyncio.gather(*(self._queue.enqueue(self._new()) for _ in range(count)))

    async def _cpu_us(self) -> float:
        used = await self._redis.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"]) * 1e6

    async def _timed(self, calls: Sequence[Awaitable[Any]]) -> float:
        """CPU us of one of these, which are made together."""
        before = await self._cpu_us()
        await asyncio.gather(*calls)
        return (await self._cpu_us() - before) / len(calls)


class Backlog(Subject):
    """So many wait. A request comes behind them, a pull takes the first, a finish gives its room to the next."""

    async def fill(self) -> None:
        for start in range(0, self._size, 500):
            await self._enqueue(min(500, self._size - start))

    async def measure(self) -> dict[str, float]:
        self._round += 1
        enqueue_us = await self._timed([self._queue.enqueue(self._new()) for _ in range(2 * AT_ONCE)])
        names = [f"w-{self._round}-{n}" for n in range(AT_ONCE)]
        pull_us = await self._timed(
            [self._queue.park(m.Offer(w, "demo", _COST_TOKENS, 1, 10.0, prefill_weight=1e9)) for w in names]
        )
        grants = [grant for name in names for grant in await self._granted(name)]
        await asyncio.gather(*(self._queue.begin(grant) for grant in grants))
        finish_us = await self._timed([self._queue.finish(grant, 1, _CHUNK, _DETAIL) for grant in grants])
        return {"enqueue": enqueue_us, "pull": pull_us, "finish and take": finish_us}

    async def _granted(self, worker: str) -> list[m.Grant]:
        _, words = await self._queue.read_inbox(worker, "0", block_ms=100)
        return [word for word in words if isinstance(word, m.Grant)]


class Parked(Subject):
    """So many workers are parked with room. A request meets the best of them, begins and ends."""

    async def fill(self) -> None:
        offers = [m.Offer(f"w-{n:04d}", "demo", 10**9, 10**6, 10.0, prefill_weight=1e9) for n in range(self._size)]
        await asyncio.gather(*(self._queue.park(offer) for offer in offers))
        self._inboxes = {f"w-{n:04d}": "0" for n in range(self._size)}

    async def measure(self) -> dict[str, float]:
        enqueue_us = await self._timed([self._queue.enqueue(self._new()) for _ in range(AT_ONCE)])
        grants = await self._granted()
        begin_us = await self._timed([self._queue.begin(grant) for grant in grants])
        finish_us = await self._timed([self._queue.finish(grant, 1, _CHUNK, _DETAIL) for grant in grants])
        return {"enqueue and meet": enqueue_us, "begin": begin_us, "finish": finish_us}

    async def _granted(self) -> list[m.Grant]:
        """All inboxes in one read: they were written before it."""
        keys = {f"{{s0}}:inbox:{name}": after for name, after in self._inboxes.items()}
        grants = []
        for key, entries in await self._redis.xread(keys) or ():
            worker = key.decode().rpartition(":")[2]
            for entry, fields in entries:
                self._inboxes[worker] = entry.decode()
                word = inbox_word(worker, entry.decode(), fields)
                if isinstance(word, m.Grant):
                    grants.append(word)
        return grants
