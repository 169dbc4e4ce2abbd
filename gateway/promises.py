"""What this gateway accepted and has not seen the end of, so that it can be given to a Redis that went back in time.

A restart on an older file, or a failover that lost the tail, forgets acknowledged requests. While the server's history stays
the same nothing can have been lost, and nothing is asked. Once it changed, each remembered request is looked for; one that is
truly gone, with no record and no tombstone, goes into the line again under its own id.
Never here: noticing a change (watching.py), streams (streaming.py: they rewind).
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from itertools import islice

import msgspec

from dispatch.faults import STORE_FAULT, as_penstock, is_unreachable
from dispatch.messages import EnqueueStatus, NewRequest
from dispatch.queue import Queue
from dispatch.states import ENDINGS
from gateway.watching import Watch

log = logging.getLogger("penstock.gateway")

MOST_BYTES = 64 * 1024 * 1024
_OVERHEAD_BYTES = 1024
_TIDY_EVERY_S = 10.0
_TIDY_AT_ONCE = 500
_ENDING_STANDS_S = 5.0
_AT_ONCE = 200
_LOOKS_AFTER_S = (0.0, 2.0, 8.0)
"""When to look after a change: an old master may have accepted for a moment what its successor never got."""
_AGAIN_S = 0.25
_AGAIN_MOST_S = 5.0


@dataclass(slots=True)
class _Promise:
    new: NewRequest
    deadline: float  # by time.monotonic()
    owed: bool = False  # it is gone, and could not be given back so far
    ended_since: float | None = None  # since when Redis says, without a change of history, that it has ended

    @property
    def bytes(self) -> int:
        return len(self.new.input) + _OVERHEAD_BYTES


class Promises:
    """The accepted requests of this gateway, oldest first; the oldest go when they take too much memory."""

    def __init__(self, queue: Queue, watch: Watch, *, most_bytes: int = MOST_BYTES) -> None:
        self._queue = queue
        self._watch = watch
        self._most_bytes = most_bytes
        self._kept: dict[str, _Promise] = {}
        self._bytes = 0
        self._full = False
        self._tidied = 0  # so many of the oldest were looked at in this round and go on
        self._changed = asyncio.Event()
        self._changes = 0
        self._settled = True

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, request: str) -> bool:
        return request in self._kept

    async def unsettled(self) -> bool:
        """Whether Redis went into another history a moment ago: what is not found now may still come back."""
        await self._watch.look()  # who did not find it may know before the watch does
        return not self._settled

    def remember(self, new: NewRequest) -> None:
        """It was accepted."""
        self.forget(new.id)
        promise = _Promise(new, time.monotonic() + new.deadline_ms / 1000)
        self._kept[new.id] = promise
        self._bytes += promise.bytes
        while self._bytes > self._most_bytes:
            if not self._full:
                self._full = True
                log.warning("Too many requests are unfinished to remember all: forget the oldest", extra={"kept": len(self)})
            self.forget(next(iter(self._kept)))

    def forget(self, request: str) -> None:
        """Its end was seen."""
        promise = self._kept.pop(request, None)
        if promise is not None:
            self._bytes -= promise.bytes

    def history_changed(self) -> None:
        """Redis may have gone back in time."""
        self._changes += 1
        self._settled = False
        for promise in self._kept.values():
            promise.ended_since = None
        self._changed.set()

    async def run(self) -> None:
        """Tidy up now and then; after a change give back what is gone. For ever."""
        while True:
            try:
                async with asyncio.timeout(_TIDY_EVERY_S):
                    await self._changed.wait()
            except TimeoutError:
                await self._tidy()
                continue
            await self._settle()

    async def _settle(self) -> None:
        """Look for all, several times, and give back what is gone. Returns when nothing is owed, or at another change."""
        change = self._changes
        started = time.monotonic()
        looks = [started + after_s for after_s in _LOOKS_AFTER_S]
        owed: list[str] = []
        again_s = _AGAIN_S
        while (looks or owed) and change == self._changes:
            if looks and time.monotonic() >= looks[0]:
                looks.pop(0)
                owed, again_s = list(self._kept), _AGAIN_S
            owed = await self._give_back(owed)
            await self._watch.until_here()
            if owed:
                await asyncio.sleep(again_s)
                again_s = min(again_s * 2, _AGAIN_MOST_S)
            elif looks:
                await asyncio.sleep(max(0.0, looks[0] - time.monotonic()))
        if change == self._changes:
            self._changed.clear()
            self._settled = True

    async def _give_back(self, requests: list[str]) -> list[str]:
        """Look for these once. Returns those that have to be looked for again."""
        owed: list[str] = []
        for start in range(0, len(requests), _AT_ONCE):
            ids = requests[start : start + _AT_ONCE]
            try:
                states = await self._queue.whereabouts(ids)
            except STORE_FAULT as error:
                if not is_unreachable(error):
                    log.warning("Cannot look for accepted requests: try again", extra={"error": type(error).__name__})
                return owed + requests[start:]
            gone = []
            for request, state in zip(ids, states, strict=True):
                promise = self._kept.get(request)
                # An ending found here may be the old master's word, which its successor never got: it is no reason to forget.
                if state is None and promise is not None:
                    gone.append(promise)
            # Together: they share round trips, and the wait for a replica.
            given = await asyncio.gather(*(self._enqueue_again(promise) for promise in gone))
            owed += [promise.new.id for promise, done in zip(gone, given, strict=True) if not done]
        return owed

    async def _enqueue_again(self, promise: _Promise) -> bool:
        """Whether nothing is left to do for it. False: it must be looked for again."""
        request = promise.new.id
        left_ms = int((promise.deadline - time.monotonic()) * 1000)
        try:
            done = await self._queue.enqueue(msgspec.structs.replace(promise.new, deadline_ms=max(1, left_ms)))
        except STORE_FAULT as error:
            fault = as_penstock(error)
            return self._give_up(promise, fault.code, left_ms if fault.kind.retryable else 0)
        if done.status is EnqueueStatus.FULL:
            return self._give_up(promise, "queue_full", left_ms)
        if done.status is EnqueueStatus.OK:
            promise.owed = False
            log.warning("Redis had forgotten a request: it is in the line again", extra={"request": request})
            return True
        log.info("A forgotten request was sent again meanwhile: keep the new one", extra={"request": request, "got": done.status})
        self.forget(request)
        return True

    def _give_up(self, promise: _Promise, why: str, left_ms: int) -> bool:
        """Whether the request that could not be given back is given up: not before its deadline."""
        facts = {"request": promise.new.id, "code": why}
        if left_ms <= 0:
            log.error("Redis had forgotten a request, and it cannot be given back: give it up", extra=facts)
            self.forget(promise.new.id)
            return True
        if not promise.owed:
            promise.owed = True  # said once, however often it is tried
            log.warning("Redis had forgotten a request, and does not take it now: try again until its deadline", extra=facts)
        return False

    async def _tidy(self) -> None:
        """Forget what ended without a reader here: some at a time, round after round, their order as it was.

        An ending has to stand for a while before it counts: in a failover the old master goes on ending requests for a
        moment, and what it said then is lost.
        """
        ids = list(islice(self._kept, self._tidied, self._tidied + _TIDY_AT_ONCE))
        try:
            states = await self._queue.whereabouts(ids)
        except STORE_FAULT:
            return
        now = time.monotonic()
        ended = []
        for request, state in zip(ids, states, strict=True):
            promise = self._kept.get(request)
            if promise is None or state not in ENDINGS:
                continue
            promise.ended_since = promise.ended_since or now
            if now - promise.ended_since >= _ENDING_STANDS_S:
                ended.append(request)
        for request in ended:
            self.forget(request)
        self._tidied = self._tidied + len(ids) - len(ended) if len(ids) == _TIDY_AT_ONCE else 0
        self._full = self._full and self._bytes > self._most_bytes // 2
