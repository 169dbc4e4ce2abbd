"""What this gateway accepted and has not seen the end of, so that it can be given to a Redis that went back in time.

A restart on an older file, or a failover that lost the tail, forgets acknowledged requests. While the server's history stays
the same nothing can have been lost, and nothing is asked. Once it changed, each remembered request is looked for; one that is
truly gone, with no record and no tombstone, goes into the line again under its own id.
Never here: noticing a change (watching.py), streams (streaming.py: they rewind).
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Iterable
from itertools import islice

from dispatch.faults import STORE_FAULT, is_unreachable
from dispatch.messages import EnqueueStatus, NewRequest
from dispatch.queue import Queue
from dispatch.states import ENDINGS
from gateway.watching import Watch

log = logging.getLogger("penstock.gateway")

MOST_BYTES = 64 * 1024 * 1024
_OVERHEAD_BYTES = 1024
_TIDY_EVERY_S = 10.0
_TIDY_AT_ONCE = 500
_AT_ONCE = 200
_LOOKS_AFTER_S = (0.0, 2.0, 8.0)
"""When to look after a change: an old master may have accepted for a moment what its successor never got."""


@dataclasses.dataclass(slots=True)
class _Promise:
    new: NewRequest
    deadline: float  # by time.monotonic()

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
        self._changed = asyncio.Event()
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
        self._settled = False
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
            self._changed.clear()
            started = time.monotonic()
            for after_s in _LOOKS_AFTER_S:
                await asyncio.sleep(max(0.0, started + after_s - time.monotonic()))
                while not await self._give_back():
                    await self._watch.until_here()
                    await asyncio.sleep(0.1)
            self._settled = not self._changed.is_set()

    async def _give_back(self) -> bool:
        """Look for everything remembered once. False: Redis was away in between."""
        try:
            for ids in _in_parts(list(self._kept), _AT_ONCE):
                for request, state in zip(ids, await self._queue.whereabouts(ids), strict=True):
                    if state in ENDINGS:
                        self.forget(request)
                    elif state is None and request in self._kept:
                        await self._enqueue_again(self._kept[request])
        except STORE_FAULT as error:
            if not is_unreachable(error):
                raise
            return False
        return True

    async def _enqueue_again(self, promise: _Promise) -> None:
        left_ms = max(1, int((promise.deadline - time.monotonic()) * 1000))
        done = await self._queue.enqueue(dataclasses.replace(promise.new, deadline_ms=left_ms))
        log.warning(
            "Redis had forgotten a request: it is in the line again", extra={"request": promise.new.id, "got": done.status}
        )
        if done.status is not EnqueueStatus.OK and done.status is not EnqueueStatus.FULL:
            self.forget(promise.new.id)  # the client sent it again meanwhile, with the same key

    async def _tidy(self) -> None:
        """Forget what ended without a reader here."""
        ids = list(islice(self._kept, _TIDY_AT_ONCE))
        try:
            states = await self._queue.whereabouts(ids)
        except STORE_FAULT:
            return
        for request, state in zip(ids, states, strict=True):
            if state in ENDINGS:
                self.forget(request)
            elif request in self._kept:
                self._kept[request] = self._kept.pop(request)  # to the end: next time the others are looked at
        self._full = self._full and self._bytes > self._most_bytes // 2


def _in_parts(ids: list[str], size: int) -> Iterable[list[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
