"""One reader's way through one request's log: a bounded buffer between what a feed brings and what a client takes.

A reader checks that seqs are dense: after a gap, a cut feed, a reconnect or a long silence it attaches again after the last
seq it has, and drops what it has seen. So nothing is lost, doubled or polled for.
Never here: where entries come from (streaming.py), frames of an API (routes), HTTP (sse.py).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Protocol

from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT, NotReplicated, is_unreachable
from dispatch.messages import AttachStatus, EntryKind, LogEntry
from dispatch.queue import Queue
from gateway.bell import Bell

_RETRY_S = 0.25


class Source(Protocol):
    """What a reader needs of the feed that brings it entries."""

    queue: Queue
    gateway: str
    buffer_bytes: int
    on_end: Callable[[str], None]
    unsettled: Callable[[], Awaitable[bool]]

    def attaching(self, request: str) -> AbstractAsyncContextManager[None]:
        """One attach or detach of a request at a time."""
        ...


class Over(Enum):
    """Why a reader is over before its log."""

    LEFT = "left"  # the client disconnected
    CUT = "cut"  # the client did not read: its buffer was full
    CLOSING = "closing"  # this gateway shuts down


class NotYet(PenstockError):
    """Redis has just gone back in time and does not know the request; whoever accepted it may be giving it back."""

    def __init__(self, request: str) -> None:
        super().__init__(
            "redis_unavailable",
            f"Redis has just come back and does not know request {request[:60]!r} yet.",
            hint="Ask again in a few seconds.",
            retry_after_s=2,
        )


class Reader:
    """One client's way through one request's log.

    `seq` and `chain` are of the last entry handed out or waiting in the buffer. `ended` is set once the end stands there:
    where replicas are waited for, an end is held back until they have it, and forgotten when a failover took it back.
    """

    def __init__(self, feed: Source, request: str, seq: int, chain: str, *, attached: bool) -> None:
        self.request = request
        self.seq = seq
        self.chain = chain
        self.ended = False
        self.over: Over | None = None
        self._feed = feed
        self._items: list[LogEntry | None] = []
        self._unread_bytes = 0
        self._held: LogEntry | None = None  # an end that is not sure yet
        self._stale = not attached
        self._attaching = False
        self._reading = False
        self._early: list[LogEntry] = []  # offered while an attach is under way
        self._bell = Bell()
        self._abort = asyncio.Event()

    async def next(self, silence_s: float) -> list[LogEntry | None]:
        """All entries since the last call, in order; [] after that much silence, or when the reader is over.

        A None among them means: forget everything before, the log starts anew (Redis went back in time).
        """
        self._reading = True
        try:
            return await self._next(time.monotonic() + silence_s)
        finally:
            self._reading = False

    async def _next(self, deadline: float) -> list[LogEntry | None]:
        while not self._items and self.over is None:
            if self._held is not None:
                if not await self._make_sure(self._held, deadline):
                    return []
                continue
            if self._stale and not self.ended and not await self._reattach(deadline):
                return []
            if self._items or self.over is not None or self.ended:
                break
            if self._held is not None or self._stale:  # it rang while nobody listened
                continue
            if not await self._bell.heard(max(deadline - time.monotonic(), 0.0)):
                self._stale = True  # so long a silence may be one of the feed: the next call asks Redis first
                return []
        items, self._items, self._unread_bytes = self._items, [], 0
        return items

    def finish(self, why: Over) -> None:
        """The reader is over, wherever it waits."""
        if self.over is None:
            self.over = why
            self._bell.ring()
            if why is Over.CUT:
                self._abort.set()

    def leave(self) -> None:
        """The client disconnected."""
        self.finish(Over.LEFT)

    @property
    def waiting(self) -> bool:
        """Whether entries wait to be read."""
        return bool(self._items)

    async def until_cut(self) -> None:
        """Return when the reader was cut."""
        await self._abort.wait()

    def offer(self, entry: LogEntry) -> None:
        """An entry of the feed. Called by the feed, never waits."""
        if self._attaching:
            self._early.append(entry)
            return
        if self._stale or self.ended or self.over is not None:
            return
        if entry.seq <= self.seq:
            if entry.seq == self.seq and entry.chain != self.chain:
                self.doubt()
            return
        if entry.seq != self.seq + 1:
            self.doubt()
            return
        self._unread_bytes += len(entry.data)
        # One that waits for entries reads all it is given: a burst of the feed does not make it slow.
        if self._unread_bytes > self._feed.buffer_bytes and self._items and not self._reading:
            self.finish(Over.CUT)
            return
        self._take(entry)
        self._bell.ring()

    def doubt(self) -> None:
        """Something may have been missed: attach again before anything else."""
        self._stale = True
        self._bell.ring()

    def _take(self, entry: LogEntry, *, sure: bool = False) -> None:
        if entry.kind is EntryKind.END and self._feed.queue.replicated and not sure:
            self._held = entry
            return
        self.seq, self.chain = entry.seq, entry.chain
        self.ended = entry.kind is EntryKind.END
        self._items.append(entry)
        if self.ended:
            self._feed.on_end(self.request)

    async def _make_sure(self, end: LogEntry, deadline: float) -> bool:
        """Let the end through, or drop it if it is no longer true. False: the deadline came first."""
        while self.over is None:
            try:
                stands = await asyncio.shield(self._feed.queue.stands(self.request, end.chain))
            except STORE_FAULT as error:
                if not (is_unreachable(error) or isinstance(error, NotReplicated)):
                    raise
            else:
                self._held = None
                if stands:
                    self._take(end, sure=True)
                else:
                    self._stale = True  # its failover lost it: the request goes on
                return True
            if time.monotonic() + _RETRY_S > deadline:
                return False
            await asyncio.sleep(_RETRY_S)
        return True

    async def _reattach(self, deadline: float) -> bool:
        while self.over is None:
            try:
                # Shielded: a client that leaves must not break a connection in the middle of a reply.
                await asyncio.shield(self.attach())
                return True
            except NotYet:
                pass
            except STORE_FAULT as error:
                if not (is_unreachable(error) or isinstance(error, NotReplicated)):
                    raise
            if time.monotonic() + _RETRY_S > deadline:
                return False
            await asyncio.sleep(_RETRY_S)
        return True

    async def attach(self) -> None:
        """Register with Redis and take the log after the last seq. Raises request_not_found, stream_expired or NotYet."""
        async with self._feed.attaching(self.request):
            self._stale, self._attaching, self._early = False, True, []
            try:
                found = await self._feed.queue.attach(
                    self.request, self._feed.gateway, after_seq=self.seq, after_chain=self.chain
                )
                if found.status in (AttachStatus.MISSING, AttachStatus.GONE) and self._feed.queue.replicated:
                    # A master that was replaced may not know it.
                    found = await self._feed.queue.attach(
                        self.request, self._feed.gateway, after_seq=self.seq, after_chain=self.chain, sure=True
                    )
            except BaseException:
                self._stale = True
                raise
            finally:
                self._attaching = False
        if found.status is AttachStatus.MISSING:
            if await self._feed.unsettled():
                self._stale = True
                raise NotYet(self.request)
            raise not_found(self.request)
        if found.status is AttachStatus.GONE:
            raise expired(self.request)
        if found.status is AttachStatus.REWIND:
            self._items.append(None)
            self.seq, self.chain, self.ended, self._held = 0, "", False, None
        for entry in found.entries:
            if entry.seq == self.seq + 1:
                self._take(entry)
        # What the feed brought meanwhile comes after that, or is a double of it.
        early, self._early = self._early, []
        for entry in early:
            self.offer(entry)
        if not found.live and not self._stale and self._held is None:
            self.ended = True  # also where the client has the end already
        if self._items or self._held is not None:
            self._bell.ring()


def not_found(request: str) -> PenstockError:
    """The error for an id that is unknown here, or another tenant's."""
    return PenstockError(
        "request_not_found",
        f"There is no request {request[:60]!r}.",
        hint="Ids come from POST /v1/requests and the X-Penstock-Request header; GET /v1/requests lists them.",
    )


def expired(request: str) -> PenstockError:
    """The error for a request whose output is no longer kept."""
    return PenstockError(
        "stream_expired",
        f"Request {request} has ended, and its output is no longer kept.",
        hint="Send it anew; the operator sets how long outputs are kept (PENSTOCK_QUEUE__RETENTION_S).",
    )


def unconfirmed(request: str) -> PenstockError:
    """The error for an end or an absence that only this Redis knows of: a failover might take it back."""
    return PenstockError(
        "not_replicated",
        f"Not all replicas say the same of {request[:60]!r} yet as the Redis that answered.",
        hint="Ask again in a few seconds.",
        retry_after_s=2,
    )
