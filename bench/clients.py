"""Workers as Redis sees them, many in one process: they beat, park, read their inbox, begin, say one chunk and finish; no engine.

Each has its own connections, as a worker process has. Never here: what is measured.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hiredis

from bench.wire import Wire
from dispatch import keys
from dispatch import messages as m
from dispatch.batching import Asked, together
from dispatch.entries import inbox_word
from dispatch.queue import Queue
from dispatch.redis_client import BLOCK_MS, connect
from dispatch.reports import Heartbeat, RoomStatus
from dispatch.rules import QueueRules
from dispatch.scripts import Script, compose_all
from dispatch.states import WorkerState

RULES = QueueRules()
_CHUNK = b'{"text":" and the water goes on","tokens":[5,6,7,8,9,10]}'
_DETAIL = b'{"finish_reason":"stop","usage":{"prompt_tokens":100,"completion_tokens":12}}'
_INPUT = m.encode(m.InferenceRequest("bench", "demo", m.InputKind.COMPLETION, m.Sampling(16), prompt="w" * 400))
_SHARD = keys.ShardKeys("s0")


class Recorded:
    """Stands where a wire would, and keeps the bytes of what is said."""

    def __init__(self, reply: Any) -> None:
        self._asked: list[Asked] = []
        self._reply = reply

    async def execute(self, *command: Any) -> Any:
        self._asked.append((command, None, asyncio.get_running_loop().create_future()))
        return self._reply

    async def join(self, own: tuple[Any, ...], *command: Any) -> Any:
        self._asked.append((command, own, asyncio.get_running_loop().create_future()))
        return self._reply

    @property
    def packed(self) -> list[bytes]:
        """The commands, those joined that a batch joins."""
        return [hiredis.pack_command(tuple(call.words)) for call in together(self._asked)]


def queue_on(wire: Any, scripts: Mapping[str, Script]) -> Queue:
    """The laws, spoken over a wire."""
    queue = Queue(connect("unix:///nowhere"), RULES, scripts=scripts)
    queue._batched = queue._promised = wire
    return queue


class ParkedWorker:
    """One worker. `on_begun` is told the request and the moment when its begin was answered, `on_finished` its end."""

    def __init__(
        self,
        worker: str,
        scripts: Mapping[str, Script],
        on_begun: Callable[[str, float], None],
        on_finished: Callable[[str], None],
    ) -> None:
        self._id = worker
        self._scripts = scripts
        self._on_begun, self._on_finished = on_begun, on_finished
        self._tasks: set[asyncio.Task[None]] = set()
        self._wire: Wire
        self._inbox: Wire
        self._queue: Queue
        self._beat = b""

    async def connect(self, url: str) -> None:
        """Connected, and parked."""
        self._wire, self._inbox = await Wire.to(url), await Wire.to(url)
        self._queue = queue_on(self._wire, self._scripts)
        await self._queue.park(self._offer())
        parking, renewing = Recorded((0, 0, 0, 0)), Recorded(((), ()))
        await queue_on(parking, self._scripts).park(self._offer())
        await queue_on(renewing, self._scripts).renew(self._id, [])
        beat: tuple[tuple[Any, ...], ...] = (
            ("SET", keys.heartbeat(self._id), m.encode(self._heartbeat()), "PX", 5_000),
            ("ZADD", keys.WORKERS, int(time.time() * 1000), self._id),
            ("GET", keys.model_card("demo")),
        )
        self._beat = b"".join(hiredis.pack_command(c) for c in beat) + b"".join([*renewing.packed, *parking.packed])

    def start(self, phase_s: float) -> None:
        """Beat from now on, `phase_s` after the second."""
        for work in (self._beats(phase_s), self._reads(phase_s)):
            self._keep(asyncio.create_task(work))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._wire.close()
        self._inbox.close()

    def _offer(self) -> m.Offer:
        return m.Offer(self._id, "demo", 10**9, 10**6, 1_000.0, prefill_weight=1e9)

    def _heartbeat(self) -> Heartbeat:
        now_ms = int(time.time() * 1000)
        return Heartbeat(
            id=self._id, host="bench", pid=1, model="demo", engine="sim", state=WorkerState.READY, limit_tokens=10**9,
            slots=10**6, weight=1_000.0, held=0, held_tokens=0, started_at_ms=now_ms, beat_at_ms=now_ms,
            room=RoomStatus(10**9, 0, 0, 0, 10**9),
        )  # fmt: skip

    async def _beats(self, phase_s: float) -> None:
        """As worker/heartbeat.py: the heartbeat, the leases, the pull."""
        due = time.monotonic() + phase_s
        while True:
            await asyncio.sleep(due - time.monotonic())
            self._wire.say(self._beat, 5)
            due = max(due + 1.0, time.monotonic())

    async def _reads(self, phase_s: float) -> None:
        await asyncio.sleep(phase_s)
        after, key = b"0", _SHARD.inbox(self._id)
        while True:
            found = await self._inbox.execute("XREAD", "COUNT", 100, "BLOCK", BLOCK_MS, "STREAMS", key, after)
            for _, entries in found or ():
                for after, fields in entries:  # noqa: B007 - where to go on
                    told = dict(zip(fields[::2], fields[1::2], strict=True))
                    word = inbox_word(self._id, "", told)
                    if isinstance(word, m.Grant):
                        self._keep(asyncio.create_task(self._work(word)))

    async def _work(self, grant: m.Grant) -> None:
        if await self._queue.begin(grant) is None:
            return
        self._on_begun(grant.request, time.perf_counter())
        await self._queue.append(grant, 1, _CHUNK)
        await self._queue.finish(grant, 2, _CHUNK, _DETAIL)
        self._on_finished(grant.request)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A worker that is deaf would be measured as a slow one.
            print(f"{self._id} failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)


class Crowd:
    """Some of these workers, and a client that submits to them."""

    def __init__(self, url: str, names: Sequence[str]) -> None:
        self._url = url
        self._scripts = compose_all(RULES)
        self._workers = [ParkedWorker(name, self._scripts, self._begun, self._finished) for name in names]
        self._wire: Wire
        self._queue: Queue
        self._sent: dict[str, float] = {}
        self._ends: dict[str, asyncio.Future[None]] = {}
        self.spans: list[float] = []
        """From the submit of each request to its begin, in seconds."""
        self.finished = 0

    async def start(self) -> None:
        """All are parked when it returns, and have beaten once."""
        self._wire = await Wire.to(self._url)
        for script in self._scripts.values():
            await self._wire.execute("FUNCTION", "LOAD", "REPLACE", script.library)
        self._queue = queue_on(self._wire, self._scripts)
        for worker in self._workers:
            await worker.connect(self._url)
        for place, worker in enumerate(self._workers):
            worker.start(place / len(self._workers))
        await asyncio.sleep(1.5)

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
        self._wire.close()

    def _begun(self, request: str, at: float) -> None:
        if (sent_at := self._sent.pop(request, None)) is not None:
            self.spans.append(at - sent_at)

    def _finished(self, request: str) -> None:
        self.finished += 1
        if (end := self._ends.pop(request, None)) is not None:
            end.set_result(None)
