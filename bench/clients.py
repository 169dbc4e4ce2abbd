"""Workers as Redis sees them, many in one process: they beat, park, read their inbox, begin, say one chunk and finish; no engine.

Each has its own connections, as a worker process has. Never here: what is measured.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from dispatch import messages as m
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.redis_client import BLOCK_MS, connect
from dispatch.reports import Heartbeat, RoomStatus
from dispatch.rules import QueueRules
from dispatch.scripts import Script, compose_all
from dispatch.states import WorkerState

RULES = QueueRules()
CHUNK = b'{"text":" and the water goes on","tokens":[5,6,7,8,9,10]}'
_DETAIL = b'{"finish_reason":"stop","usage":{"prompt_tokens":100,"completion_tokens":12}}'
_INPUT = m.encode(m.InferenceRequest("bench", "demo", m.InputKind.COMPLETION, m.Sampling(16), prompt="w" * 400))


class ParkedWorker:
    """One worker. `on_begun` is told the request and the moment when its begin was answered, `on_finished` its end."""

    def __init__(
        self,
        url: str,
        worker: str,
        scripts: Mapping[str, Script],
        on_begun: Callable[[str, float], None],
        on_finished: Callable[[str], None],
    ) -> None:
        self._id = worker
        self._redis, self._inbox_redis = connect(url, max_connections=4), connect(url, max_connections=1)
        self._queue = Queue(self._redis, RULES, scripts=scripts)
        self._inbox = Queue(self._inbox_redis, RULES, scripts=scripts)
        self._fleet = Fleet(self._redis)
        self._on_begun, self._on_finished = on_begun, on_finished
        self._held: dict[str, m.Grant] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, phase_s: float) -> None:
        """Beat from now on, `phase_s` after the second."""
        for work in (self._beats(phase_s), self._reads()):
            self._keep(asyncio.create_task(work))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._redis.aclose()
        await self._inbox_redis.aclose()

    async def beat(self) -> None:
        """As worker/heartbeat.py beats."""
        await asyncio.gather(
            self._fleet.beat(self._heartbeat(), 5_000),
            self._queue.renew(self._id, list(self._held.values())),
            self._queue.park(m.Offer(self._id, "demo", 10**9, 10**6, 1_000.0, prefill_weight=5_000.0)),
        )

    def _heartbeat(self) -> Heartbeat:
        now_ms = int(time.time() * 1000)
        return Heartbeat(
            id=self._id, host="bench", pid=1, model="demo", engine="sim", state=WorkerState.READY, limit_tokens=10**9,
            slots=10**6, weight=1_000.0, held=len(self._held), held_tokens=0, started_at_ms=now_ms, beat_at_ms=now_ms,
            room=RoomStatus(10**9, 0, 0, 0, 10**9),
        )  # fmt: skip

    async def _beats(self, phase_s: float) -> None:
        due = time.monotonic() + phase_s
        while True:
            await asyncio.sleep(due - time.monotonic())
            await self.beat()
            due = max(due + 1.0, time.monotonic())

    async def _reads(self) -> None:
        after = "0"
        while True:
            after, words = await self._inbox.read_inbox(self._id, after, block_ms=BLOCK_MS)
            for word in words:
                if isinstance(word, m.Grant):
                    self._keep(asyncio.create_task(self._work(word)))

    async def _work(self, grant: m.Grant) -> None:
        if await self._queue.begin(grant) is None:
            return
        self._on_begun(grant.request, time.perf_counter())
        self._held[grant.request] = grant
        await self._queue.append(grant, 1, CHUNK)
        await self._queue.finish(grant, 2, CHUNK, _DETAIL)
        del self._held[grant.request]
        self._on_finished(grant.request)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Crowd:
    """Some of these workers, and a client that submits to them."""

    def __init__(self, url: str, names: Sequence[str]) -> None:
        scripts = compose_all(RULES)
        self._redis = connect(url)
        self._queue = Queue(self._redis, RULES, scripts=scripts)
        self._workers = [ParkedWorker(url, name, scripts, self._begun, self._finished) for name in names]
        self._sent: dict[str, float] = {}
        self._ends: dict[str, asyncio.Future[None]] = {}
        self.spans: list[float] = []
        """From the submit of each request to its begin, in seconds."""
        self.finished = 0

    async def start(self) -> None:
        """All are parked when it returns."""
        for first in range(0, len(self._workers), 50):
            await asyncio.gather(*(w.beat() for w in self._workers[first : first + 50]))
        for place, w in enumerate(self._workers):
            w.start(place / len(self._workers))

    async def submit(self, *, to_its_end: bool = True) -> None:
        """One request. Its end is only heard of if one of these workers ends it."""
        new = m.NewRequest(
            m.new_id(), "demo", _INPUT, m.InputKind.COMPLETION, 128, deadline_ms=600_000, prompt_tokens=100, strategy="pull"
        )
        end = asyncio.get_running_loop().create_future()
        if to_its_end:
            self._ends[new.id] = end
        self._sent[new.id] = time.perf_counter()
        await self._queue.enqueue(new)
        if to_its_end:
            await end

    async def stop(self) -> None:
        await asyncio.gather(*(w.stop() for w in self._workers))
        await self._redis.aclose()

    def _begun(self, request: str, at: float) -> None:
        if (sent_at := self._sent.pop(request, None)) is not None:
            self.spans.append(at - sent_at)

    def _finished(self, request: str) -> None:
        self.finished += 1
        if (end := self._ends.pop(request, None)) is not None:
            end.set_result(None)
