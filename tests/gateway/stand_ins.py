"""Workers without a process behind them: they park, beat, and hold what they are granted."""

import dataclasses
import time
from typing import Any

from dispatch import messages as m
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.reports import Heartbeat
from dispatch.states import WorkerState
from tests.gateway.helpers import MODEL


@dataclasses.dataclass
class StandIns:
    """Workers by id; each `beat` parks them all again, so that none is passed over as unseen."""

    queue: Queue
    fleet: Fleet
    offers: dict[str, m.Offer] = dataclasses.field(default_factory=dict)
    read_until: dict[str, str] = dataclasses.field(default_factory=dict)
    held: dict[str, m.Grant] = dataclasses.field(default_factory=dict)
    seqs: dict[str, int] = dataclasses.field(default_factory=dict)

    async def park(self, worker: str, limit: int = 10_000, slots: int = 64, weight: float = 100.0, **more: Any) -> None:
        self.offers[worker] = m.Offer(worker, MODEL, limit, slots, weight, **more)
        await self.queue.park(self.offers[worker])
        await self.say(worker, WorkerState.READY)

    async def say(self, worker: str, state: WorkerState, **more: Any) -> None:
        """A heartbeat that stands to the end of the test."""
        now = int(time.time() * 1000)
        said = Heartbeat(worker, "host", 1, MODEL, "sim", state, 0, 0, 0.0, 0, 0, now, now)
        await self.fleet.beat(dataclasses.replace(said, **more), 60_000)

    async def beat(self) -> None:
        """Heard of again, and what was granted meanwhile has begun."""
        for worker, offer in self.offers.items():
            # Not blocking: a server looks only ten times a second for those whose time is over.
            after = self.read_until.get(worker, "0")
            self.read_until[worker], words = await self.queue.read_inbox(worker, after, block_ms=None)  # type: ignore[arg-type]
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
