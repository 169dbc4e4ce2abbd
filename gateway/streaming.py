"""Output on its way to clients: one blocking read a process, handed to all its readers.

The feed brings what is appended while this gateway is registered as a reader; `attach` returns the log so far and
registers in one step. Never here: what a reader makes of it (reading.py), frames of an API (routes), HTTP (sse.py).
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from dispatch.faults import STORE_FAULT, is_unreachable
from dispatch.queue import Queue
from dispatch.redis_client import BLOCK_MS
from gateway.reading import Over, Reader

log = logging.getLogger("penstock.gateway")

_KEEP_EVERY_S = 5.0  # a sixth of the reader lease: several may fail before it lapses
_TRIM_EVERY_S = 1.0
_ATTACH_AT_ONCE = 16  # after a reconnect all readers attach anew; the pool must stay free for the others
_RETRY_S = 0.25
_DETACH_AGAIN_S = 1.0
_SETTLE_S = 2.0


@dataclass(slots=True)
class _Readers:
    """The readers of one request in this process, and the lock of its attaches and detaches, kept while any wants it."""

    here: set[Reader] = field(default_factory=set)
    wanting: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Feed:
    """This gateway's one feed and all its readers. `gateway` is new for every process.

    `on_end` hears of each request whose end was read; `unsettled` says whether Redis has just gone back in time.
    """

    def __init__(self, queue: Queue, reading: Queue, *, buffer_bytes: int) -> None:
        self.queue = queue
        self.gateway = f"g-{secrets.token_hex(4)}"
        self.buffer_bytes = buffer_bytes
        self.closing = False
        self.on_end: Callable[[str], None] = lambda request: None
        self.unsettled: Callable[[], Awaitable[bool]] = _settled
        self._reading = reading  # the same laws on a connection of its own: it blocks
        self._requests: dict[str, _Readers] = {}
        self._attaching = asyncio.Semaphore(_ATTACH_AT_ONCE)
        self._leaving: set[asyncio.Task[None]] = set()
        self._through = ""
        self._trimmed = ""

    def subscribe(self, request: str, *, after_seq: int = 0, after_chain: str = "", attached: bool = False) -> Reader:
        """A new reader, known to the feed from now on. `attached`: the enqueue registers this gateway itself."""
        reader = Reader(self, request, after_seq, after_chain, attached=attached)
        self._requests.setdefault(request, _Readers()).here.add(reader)
        if self.closing:
            reader.finish(Over.CLOSING)
        return reader

    def leave(self, reader: Reader, *, then_continue: bool = False) -> None:
        """The reader is done. The last one of a request that has not ended tells Redis so, in the background.

        Not on a gateway that shuts down: its requests go on until their reader lease is over, for clients that resume.
        `then_continue`: the request no longer needs a reader.
        """
        readers = self._requests.get(reader.request)
        if readers is None or reader not in readers.here:
            return
        readers.here.discard(reader)
        if readers.here:
            return
        if reader.ended or (self.closing and not then_continue):
            self._forget(reader.request)
            return
        task = asyncio.create_task(self._detach(reader.request, then_continue))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def forget(self, reader: Reader) -> None:
        """Drop a reader of a request that Redis never stored."""
        readers = self._requests.get(reader.request)
        if readers is not None:
            readers.here.discard(reader)
            self._forget(reader.request)

    @asynccontextmanager
    async def attaching(self, request: str) -> AsyncIterator[None]:
        """One attach or detach of a request at a time, so that the last word in Redis is the last one here."""
        readers = self._requests.setdefault(request, _Readers())
        readers.wanting += 1
        try:
            async with readers.lock, self._attaching:
                yield
        finally:
            readers.wanting -= 1
            self._forget(request)

    @property
    def open_readers(self) -> int:
        """How many readers there are."""
        return sum(len(readers.here) for readers in self._requests.values())

    async def run(self) -> None:
        """Read the feed for ever."""
        position = "0"
        troubled = False
        trim_at = time.monotonic() + _TRIM_EVERY_S
        while True:
            try:
                position, entries = await self._reading.read_feed(self.gateway, position, block_ms=BLOCK_MS)
                if troubled:
                    troubled = False
                    log.info("Read the feed again", extra={"gateway": self.gateway})
                    self.doubt_all()
                for entry in entries:
                    if entry is None:
                        self.doubt_all()
                        continue
                    readers = self._requests.get(entry.request)
                    if readers is not None:
                        for reader in readers.here:
                            reader.offer(entry)
                self._through = position
                if time.monotonic() >= trim_at and self._through != self._trimmed:
                    await self._reading.trim_feed(self.gateway, self._through)
                    self._trimmed = self._through
                    trim_at = time.monotonic() + _TRIM_EVERY_S
                if entries:
                    await asyncio.sleep(0)  # readers first: a busy feed never blocks
            except STORE_FAULT as error:
                if not troubled:
                    log.warning("Cannot read the feed", extra={"gateway": self.gateway, "error": type(error).__name__})
                troubled = True
                # A Redis that lost its data, or whose clock is behind, starts the feed at lower ids; doubles are dropped.
                position = "0"
                await asyncio.sleep(_RETRY_S)

    async def keep(self) -> None:
        """Renew the reader leases for ever."""
        troubled = False
        while True:
            try:
                await self.queue.keep_reading(self.gateway)
                troubled = False
            except STORE_FAULT as error:
                if not troubled:
                    log.warning("Cannot renew the reader leases", extra={"gateway": self.gateway, "error": type(error).__name__})
                troubled = True
            # After an outage soon: the leases may be over already.
            await asyncio.sleep(_RETRY_S if troubled else _KEEP_EVERY_S)

    def close_all(self) -> None:
        """This gateway shuts down: every reader is over, no request is cancelled for it."""
        self.closing = True
        for readers in self._requests.values():
            for reader in readers.here:
                reader.finish(Over.CLOSING)

    async def settle(self) -> None:
        """Wait a little for the detaches under way."""
        if self._leaving:
            await asyncio.wait(set(self._leaving), timeout=_SETTLE_S)
        for task in self._leaving:
            task.cancel()

    def doubt_all(self) -> None:
        """Something may have been missed: every reader attaches again."""
        for readers in self._requests.values():
            for reader in readers.here:
                reader.doubt()

    async def _detach(self, request: str, then_continue: bool) -> None:
        while True:  # until answered: while this gateway lives, a request it forgot to leave would be worked for nobody
            try:
                async with self.attaching(request):
                    readers = self._requests.get(request)
                    if readers is None or not readers.here:  # nobody came meanwhile
                        await self.queue.detach(request, self.gateway, then_continue=then_continue)
                break
            except STORE_FAULT as error:
                if not is_unreachable(error):
                    log.warning("Cannot detach", extra={"request": request, "error": type(error).__name__})
                    break
                await asyncio.sleep(_DETACH_AGAIN_S)
        self._forget(request)

    def _forget(self, request: str) -> None:
        readers = self._requests.get(request)
        if readers is not None and not readers.here and not readers.wanting:
            del self._requests[request]


async def _settled() -> bool:
    return False
