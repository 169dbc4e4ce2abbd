"""A worker without an engine: it takes all requests, and says what it is told when it is told. Never here: what is measured."""

import asyncio
import contextlib
import time
from collections.abc import Sequence

from bench.clients import Recorded, queue_on
from bench.wire import Wire
from dispatch import messages as m
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.redis_client import BLOCK_MS, connect
from dispatch.reports import Heartbeat, ModelCard, RoomStatus
from dispatch.rules import QueueRules
from dispatch.scripts import compose_all
from dispatch.states import WorkerState

MODEL = "demo"
LEASE_S = 3_600
"""It renews nothing: the gateway is told the same."""
RULES = QueueRules(lease_ms=LEASE_S * 1000)
_LIMIT, _SLOTS = 10**9, 10**6


class Puppet:
    """One worker. `grants`: what it holds, begun, in the order it came; `seqs`: how far each was said."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._redis, self._reading = connect(url), Queue(connect(url, max_connections=2), RULES)
        self._scripts = compose_all(RULES)
        self._wire: Wire
        self._queue: Queue
        self._tasks: list[asyncio.Task[None]] = []
        self.grants: list[m.Grant] = []
        self.seqs: list[int] = []

    async def start(self) -> None:
        """It is parked when this returns, and its model has a card."""
        self._wire = await Wire.to(self._url)
        for script in self._scripts.values():
            await self._wire.execute("FUNCTION", "LOAD", "REPLACE", script.library)
        self._queue = queue_on(self._wire, self._scripts)
        fleet = Fleet(self._redis)
        await fleet.put_card(ModelCard(MODEL, "sim", 131_072, 131_072, _LIMIT), None, publisher="puppet")
        await self._beat(fleet)
        self._tasks = [asyncio.create_task(self._beats(fleet)), asyncio.create_task(self._takes())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._wire.close()
        await self._redis.aclose()

    def say(self, turns: Sequence[int], text: bytes) -> None:
        """The next chunk of each of these, in one write; nobody waits for the replies."""
        recorded = Recorded(b"ok")
        queue = queue_on(recorded, self._scripts)
        for turn in turns:
            self.seqs[turn] += 1
            data = b'{"text":" and on @%d@%s","tokens":[5,6]}' % (time.monotonic_ns(), text)
            with contextlib.suppress(StopIteration):  # nothing is awaited: it is over at once
                queue.append(self.grants[turn], self.seqs[turn], data).send(None)
        packed = recorded.packed
        self._wire.say(b"".join(packed), len(packed))

    async def _beats(self, fleet: Fleet) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self._beat(fleet)

    async def _beat(self, fleet: Fleet) -> None:
        now_ms = int(time.time() * 1000)
        beat = Heartbeat(
            id="puppet", host="bench", pid=1, model=MODEL, engine="sim", state=WorkerState.READY, limit_tokens=_LIMIT,
            slots=_SLOTS, weight=1_000.0, held=len(self.grants), held_tokens=0, started_at_ms=now_ms, beat_at_ms=now_ms,
            room=RoomStatus(_LIMIT, 0, 0, 0, _LIMIT),
        )  # fmt: skip
        await fleet.beat(beat, 5_000)
        await self._queue.park(m.Offer("puppet", MODEL, _LIMIT, _SLOTS, 1_000.0, prefill_weight=5_000.0))

    async def _takes(self) -> None:
        after = "0"
        while True:
            after, words = await self._reading.read_inbox("puppet", after, block_ms=BLOCK_MS)
            grants = [word for word in words if isinstance(word, m.Grant)]
            begun = await asyncio.gather(*(self._queue.begin(grant) for grant in grants))
            for grant, stands in zip(grants, begun, strict=True):
                if stands is not None:
                    self.grants.append(grant)
                    self.seqs.append(0)
