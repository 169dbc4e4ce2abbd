"""Parked pulls without a process behind them: they say what they can hold, and hold what they are granted."""

from dataclasses import dataclass, field

from dispatch import messages as m
from dispatch.queue import Queue
from tests.gateway.helpers import MODEL


@dataclass
class StandIns:
    """Workers by id; each `beat` parks them all again, so that none is passed over as unseen."""

    queue: Queue
    offers: dict[str, m.Offer] = field(default_factory=dict)
    read_until: dict[str, str] = field(default_factory=dict)
    held: dict[str, m.Grant] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)

    async def park(self, worker: str, limit: int = 10_000, slots: int = 64, weight: float = 100.0, **more: object) -> None:
        self.offers[worker] = m.Offer(worker, MODEL, limit, slots, weight, **more)  # type: ignore[arg-type]
        await self.queue.park(self.offers[worker])

    async def beat(self) -> None:
        """Heard of again, and what was granted meanwhile has begun."""
        for worker, offer in self.offers.items():
            self.read_until[worker], words = await self.queue.read_inbox(worker, self.read_until.get(worker, "0"), block_ms=1)
            for word in words:
                begun = await self.queue.begin(word) if isinstance(word, m.Grant) else None
                if isinstance(word, m.Grant) and begun is not None:
                    self.held[word.request], self.seqs[word.request] = word, begun.seq
            mine = [grant for grant in self.held.values() if grant.worker == worker]
            for request, _ in (await self.queue.renew(worker, mine)).lost:
                self.held.pop(request, None)
            await self.queue.park(offer)

    async def finish(self, request: str) -> None:
        detail = b'{"finish_reason":"stop","usage":{"prompt_tokens":1,"completion_tokens":1}}'
        assert await self.queue.finish(self.held.pop(request), self.seqs[request] + 1, b"", detail) is m.WriteStatus.OK
