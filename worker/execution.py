"""ONE request: begin, what was already done, generate, write, end. The outcome comes first, its consequence after.

Chunks gather by load: a lone stream writes each token at once, a busy worker at most 20 times a second and stream.
Redis being away stops no computation; its writes are repeated until the lease is surely lost. Never here: other requests.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from dispatch.faults import STORE_FAULT, as_penstock
from dispatch.messages import Begun, FinishReason, Grant, Usage, WriteStatus
from dispatch.pricing import PAGE_TOKENS
from dispatch.queue import Queue
from dispatch.states import RequestState
from worker.admission import Holding
from worker.engines.base import Chunk, Engine, EngineDead, EngineError, EngineInfo
from worker.growth import Around, Growth
from worker.outcome import Completed, Crashed, Failed, GivenBack, Lost, Moved, Outcome, Retryable, outcome_of
from worker.output import Gathered, tokens_done

_T = TypeVar("_T")
_log = logging.getLogger("penstock.worker")

_BUSY_GAP_S, _BUSY_PHASE_S = 0.05, random.random() * 0.05
"""All that a busy worker holds is written at the same moments: one round trip then carries the chunks of many, and the gateway is
woken once for them. Each worker has moments of its own."""
_LOOKS_AFTER_S = (0.0, 0.02, 0.1)
_FULL_SIZE = 4096
_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.05, 1.0
_GIVE_UP_LEASES = 6
"""Leases without a word from Redis before a request is surely somebody else's. More than one: when Redis itself was away
the sweeper first extends all leases, and the fence keeps a late write harmless."""


class Execution:
    """The work on one grant. Start it once with `run`; `stop` and `give_back` end it from outside."""

    def __init__(
        self,
        grant: Grant,
        queue: Queue,
        engine: Engine,
        info: EngineInfo,
        *,
        until_room: Callable[["Execution"], Awaitable[None]],
        is_busy: Callable[[], bool],
        on_tokens: Callable[[int], None] = lambda count: None,
        around: Around | None = None,
    ) -> None:
        self.grant = grant
        self.growth = Growth(grant.cost_tokens, moves_overruns=info.card.moves_overruns)
        self.generating = False
        """The engine works on it, or died doing so."""
        self.generating_since = 0.0
        self.crashed = False
        self._queue = queue
        self._engine = engine
        self._info = info
        self._until_room = until_room
        self._is_busy = is_busy
        self._on_tokens = on_tokens
        self._around = around or Around()
        self._give_up_s = queue.rules.lease_ms / 1000 * _GIVE_UP_LEASES
        self._seq = 0
        self._gathered = Gathered()
        self._fresh = asyncio.Event()
        self._ended = asyncio.Event()
        """The engine says nothing more."""
        self._began = False
        self._said_last = False
        self._decided: Outcome | None = None
        self._working: asyncio.Task[Any] | None = None
        self._writing: asyncio.Task[Outcome | None] | None = None

    async def run(self) -> Outcome:
        """Work it to its outcome, and write what follows from it. In a task of its own, which `stop` and the like break off
        while it works."""
        try:
            outcome = await self._while_working()
        except asyncio.CancelledError:
            if self._decided is None:
                raise
            outcome = self._decided
        except _GaveUp as error:
            outcome = Lost(str(error))
        except Exception as error:
            outcome = outcome_of(error)
            if isinstance(outcome, Retryable) and outcome.code == "internal_error":
                _log.exception("meet a bug", extra=self._fields())
            if isinstance(outcome, Retryable) and outcome.code == "engine_out_of_memory" and await self._is_crowded():
                outcome = Moved(self.growth.dearer_tokens, outcome.message)
            if isinstance(outcome, Failed) and not self._began:
                # What this worker cannot even read, a newer one may.
                outcome = Retryable(outcome.code, outcome.message)
        return await self._conclude(self._decided or outcome)

    async def _while_working(self) -> Outcome:
        task = self._working = asyncio.current_task()
        try:
            return await self._work()
        finally:
            self._working = None
            if self._decided is not None and task is not None:
                # Decided in the midst of our own step, the cancel is still to be thrown: here, and not at what follows.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
                while task.cancelling():
                    task.uncancel()

    async def _is_crowded(self) -> bool:
        """Whether it was the others' memory it lacked. On a busy machine what the engine said of them before may not be counted
        yet: then a later look knows."""
        for wait_s in _LOOKS_AFTER_S:
            await asyncio.sleep(wait_s)
            if self._around.is_crowded(self.grant):
                return True
        return False

    def stop(self, reason: str) -> None:
        """It is no longer ours: stop computing and write nothing."""
        self._decide(Lost(reason))

    @property
    def is_ending(self) -> bool:
        """The engine has said all; what is left is to write it."""
        return self._said_last

    def give_back(self) -> None:
        """Stop computing and let another worker go on."""
        self._decide(GivenBack())

    def move(self, why: str) -> None:
        """There is no memory for it here now: stop computing, and let it go on where there is."""
        self._decide(Moved(self.growth.dearer_tokens, why))

    @property
    def holding(self) -> Holding:
        """What it costs, as it is known now."""
        return self.growth.holding(generating=self.generating)

    @property
    def is_decided(self) -> bool:
        """Its outcome stands, whatever its engine still says."""
        return self._decided is not None or self._said_last

    def _decide(self, outcome: Outcome) -> None:
        self._decided = self._decided or outcome
        if self._working is not None:
            self._working.cancel()

    # ---- from grant to outcome

    async def _work(self) -> Outcome:
        if self._decided is not None:
            return self._decided
        await self._until_room(self)
        begun = await self._call(lambda: self._queue.begin(self.grant))
        if begun is None:
            return Lost("fenced at begin")
        self._began, self._seq = True, begun.seq
        done = tokens_done(await self._call(lambda: _unbroken(self._queue.output(self.grant.request)))) if begun.seq else ()
        most_tokens = self._engine.cost(begun.request).tokens
        if most_tokens > self._info.limit_tokens:
            return await self._too_big(most_tokens)
        self.growth.begun(begun.request, most_tokens, len(done))
        try:
            return await self._answered(begun, done)
        finally:
            if self._writing is not None and not self._writing.done():
                self._writing.cancel()
                await asyncio.wait({self._writing})

    async def _answered(self, begun: Begun, done: Any) -> Outcome:
        """Generate to the end, while what gathers is written."""
        try:
            outcome: Outcome | Exception = await self._generate(begun, done)
        except asyncio.CancelledError:
            if self._decided is not None or self._working is None or self._writing is None or not self._writing.done():
                raise
            self._working.uncancel()
            outcome = Lost("nothing more may be written")
        except Exception as error:
            outcome = error
        self._ended.set()
        self._fresh.set()
        if self._writing is not None:
            outcome = await self._writing or outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _too_big(self, most_tokens: int) -> Outcome:
        """It may come to need more than all there is here. Priced at its most it goes to a worker that has so much."""
        limit = self._info.limit_tokens
        if self.grant.cost_tokens < most_tokens <= await self._call(lambda: _unbroken(self._around.largest_tokens())):
            return Moved(most_tokens, f"it may need {most_tokens} KV tokens; this worker holds {limit}")
        return Failed("unschedulable", f"The request needs up to {most_tokens} KV tokens; this worker holds {limit}.")

    async def _generate(self, begun: Begun, done: Any) -> Completed:
        """Take what the engine says into `_gathered`, to the end. What comes before its last word is written meanwhile."""
        self.generating, self.generating_since = True, time.monotonic()
        try:
            self._around.begun(-(-self.holding.reach_tokens // PAGE_TOKENS))
            if self._decided is not None:
                # There is no memory for it beside the others: their next step must not find its prompt there.
                raise asyncio.CancelledError
            async with aclosing(self._engine.generate(begun.request, done)) as answer:  # type: ignore[type-var]
                async for chunk in answer:
                    self._gathered.add(chunk)
                    tokens = len(chunk.tokens) or bool(chunk.text)
                    self._on_tokens(tokens)
                    if pages := self.growth.count(tokens):
                        self._around.grown(pages)
                    if chunk.finish_reason is not None:
                        self._said_last = True
                        self.growth.ended_by_itself = chunk.finish_reason is FinishReason.STOP
                        return Completed(_detail(chunk, resumed_tokens=len(done)))
                    self._fresh.set()
                    if self._writing is None:
                        self._writing = asyncio.create_task(self._write_until_ended())
                        self._writing.add_done_callback(self._written)
            raise EngineError("engine_error", "The engine ended an answer without saying why.", retryable=True)
        except EngineDead:
            self.crashed = True
            raise
        finally:
            self.generating = self.crashed

    def _written(self, writing: asyncio.Task[Outcome | None]) -> None:
        """Nothing more may be written while the engine still speaks: that is of no use any more."""
        if self._working is not None and not self._ended.is_set() and not writing.cancelled():
            self._working.cancel()

    async def _write_until_ended(self) -> Outcome | None:
        """Append what gathers. The last piece is left for `finish`, which carries it. None: all that was to be written is."""
        last_write_at = 0.0
        while True:
            await self._fresh.wait()
            if self._said_last:
                await self._ended.wait()
            gap_s = _next_moment(last_write_at) - time.monotonic()
            if gap_s > 0 and not self._ended.is_set() and self._is_busy() and self._gathered.size < _FULL_SIZE:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(gap_s):
                        await self._ended.wait()
            self._fresh.clear()
            ended = self._ended.is_set()
            for _ in range(len(self._gathered) - ended):  # what comes meanwhile gathers
                last_write_at = time.monotonic()
                status = await self._append(self._gathered.take())
                if status is WriteStatus.FENCED:
                    return Lost("fenced at append")
                if status is WriteStatus.GAP:
                    return self._gap()
            if ended:
                return None

    # ---- from outcome to consequence

    async def _conclude(self, outcome: Outcome) -> Outcome:
        try:
            match outcome:
                case Completed(detail):
                    return await self._finish(outcome, detail, RequestState.COMPLETED)
                case Failed(code, message):
                    detail = msgspec.json.encode({"error": {"code": code, "message": message}})
                    return await self._finish(outcome, detail, RequestState.FAILED)
                case Retryable(code, message):
                    await self._call(lambda: self._queue.retry(self.grant, code, message))
                case GivenBack():
                    await self._call(lambda: self._queue.release(self.grant))
                case Moved(cost, _):
                    await self._call(lambda: self._queue.reprice(self.grant, cost))
                    # Before it is back in line: it must not come straight back into the same full room.
                    await self._call(lambda: _unbroken(self._around.before_move()))
                    await self._call(lambda: self._queue.release(self.grant))
                case Lost() | Crashed():
                    pass
        except _GaveUp as error:
            return Lost(str(error))
        return outcome

    async def _finish(self, outcome: Outcome, detail: bytes, state: RequestState) -> Outcome:
        while len(self._gathered) > 1:
            await self._append(self._gathered.take())
        last = self._gathered.take()
        seq = self._seq + 1
        status = await self._call(lambda: self._queue.finish(self.grant, seq, last, detail, state=state))
        if status is WriteStatus.GAP:
            outcome = self._gap()
            await self._call(lambda: self._queue.release(self.grant))
        return Lost("fenced at finish") if status is WriteStatus.FENCED else outcome

    def _gap(self) -> Outcome:
        # Redis has less than we wrote (it went back in time), or we counted wrong: another attempt reads what is there.
        _log.error("find a gap in the output", extra={**self._fields(), "seq": self._seq + 1})
        return GivenBack()

    # ---- speaking with Redis

    async def _append(self, data: bytes) -> WriteStatus:
        status = await self._call(lambda: self._queue.append(self.grant, self._seq + 1, data))
        if status in (WriteStatus.OK, WriteStatus.DUP):
            self._seq += 1
        return status

    async def _call(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat a call that may be repeated until Redis answers. A stop does not break off what is on the wire: the laws go in
        batches (dispatch/batching.py), the others are `_unbroken`."""
        backoff_s = _FIRST_BACKOFF_S
        give_up_at = time.monotonic() + self._give_up_s
        while True:
            try:
                return await call()
            except STORE_FAULT as error:
                # Away, or at its memory limit: both pass. Anything else is a bug that no repeating mends.
                if not as_penstock(error).kind.retryable:
                    raise
                if time.monotonic() + backoff_s > give_up_at:
                    raise _GaveUp("Redis was away for too long") from error
            await asyncio.sleep(backoff_s)
            backoff_s = min(_LAST_BACKOFF_S, backoff_s * 2)

    def _fields(self) -> dict[str, object]:
        return {"request": self.grant.request, "attempt": self.grant.attempt}


def _next_moment(at: float) -> float:
    return (math.floor((at - _BUSY_PHASE_S) / _BUSY_GAP_S) + 1) * _BUSY_GAP_S + _BUSY_PHASE_S


class _GaveUp(Exception):
    """Redis did not answer for so long that the lease is surely lost."""


async def _unbroken(call: Awaitable[_T]) -> _T:
    """Await a call that goes on when we are cancelled: breaking a reply off costs its connection."""
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda t: t.cancelled() or t.exception())
        raise


def _detail(last: Chunk, *, resumed_tokens: int) -> bytes:
    usage = Usage(last.prompt_tokens, last.completion_tokens).as_openai()
    if resumed_tokens:
        usage["resumed_tokens"] = resumed_tokens
    return msgspec.json.encode({"finish_reason": last.finish_reason, "usage": usage})
