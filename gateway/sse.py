"""A reader's log as Server-Sent Events over HTTP: flushed at once, pinged when silent, cut when not read.

Frames are bytes all the way: an entry's data is JSON already. Never here: what an API's frames look like (routes).
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT, as_penstock
from dispatch.messages import EntryKind, LogEntry
from dispatch.states import RequestState
from gateway.context import Gateway
from gateway.reading import Over, Reader

ABORT_EXTENSION = "penstock.abort"
"""Where the server (serve.py) puts the function that drops a connection at once, unsent bytes included."""

_PIECE_BYTES = 64 * 1024  # one write: small enough for the server's flow control to see a client that does not read
# One line and no empty one after it: after an `id:` the openai client takes even an empty event for a chunk, and breaks.
_PING = b": ping\n"


class Frames(Protocol):
    """How one API writes a log."""

    def opening(self) -> bytes:
        """Sent at once, before anything of the log."""
        ...

    def entry(self, entry: LogEntry) -> bytes:
        """One entry, the end included."""
        ...

    def rewind(self) -> bytes:
        """The log starts anew. Raises PenstockError where the API has no word for it."""
        ...

    def failure(self, error: PenstockError) -> bytes:
        """The stream cannot go on."""
        ...


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How long to be silent, and how long a write may take."""

    ping_s: float
    write_timeout_s: float


class EventStream(Response):
    """The response. `on_over` always runs, with why the reader was over before its log (None: it was not)."""

    media_type = "text/event-stream"

    def __init__(
        self,
        reader: Reader,
        frames: Frames,
        limits: StreamLimits,
        on_over: Callable[[Over | None], None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self._reader = reader
        self._frames = frames
        self._limits = limits
        self._on_over = on_over
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the stream to its end, whatever that is."""
        reader = self._reader
        abort = scope.get("extensions", {}).get(ABORT_EXTENSION, lambda: None)
        gone = asyncio.create_task(_until_gone(receive, reader))
        cut = asyncio.create_task(_drop_when_cut(reader, abort))
        try:
            await self._write(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send(send, self._frames.opening())
            await self._copy(send)
        except TimeoutError:  # the client does not read
            reader.finish(Over.CUT)
        except (ClientDisconnect, OSError):
            reader.finish(Over.LEFT)
        finally:
            self._on_over(reader.over)
            if reader.over is Over.CUT:
                abort()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(gone), 1.0)  # the server needs a moment to notice
            gone.cancel()
            cut.cancel()
        if reader.over not in (Over.CUT, Over.LEFT):
            await self._write(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _copy(self, send: Send) -> None:
        reader, frames = self._reader, self._frames
        while True:
            try:
                items = await reader.next(self._limits.ping_s)
                if items:
                    for piece in _pieces(items, frames):
                        await self._send(send, piece)
                    if items[-1] is not None and items[-1].kind is EntryKind.END:
                        return
                elif reader.over is Over.CLOSING:
                    raise PenstockError(
                        "draining",
                        "This gateway is shutting down; the request goes on.",
                        hint="Resume its stream from any gateway.",
                    )
                elif reader.over is not None or reader.ended:
                    return
                else:
                    await self._send(send, _PING)
            except PenstockError as error:
                await self._send(send, frames.failure(error))
                return
            except STORE_FAULT as error:
                await self._send(send, frames.failure(as_penstock(error)))
                return

    async def _send(self, send: Send, body: bytes) -> None:
        if body:
            await self._write(send, {"type": "http.response.body", "body": body, "more_body": True})

    async def _write(self, send: Send, message: dict[str, object]) -> None:
        async with asyncio.timeout(self._limits.write_timeout_s):
            await send(message)


def streamed(gateway: Gateway, reader: Reader, frames: Frames, headers: Mapping[str, str]) -> EventStream:
    """The response that carries a reader's log. The reader is its own from now on."""
    gateway.metrics.streams_open.inc()

    def over(why: Over | None) -> None:
        gateway.metrics.streams_open.dec()
        count_over(gateway, reader, why)
        gateway.feed.leave(reader)

    limits = StreamLimits(gateway.settings.gateway.ping_s, gateway.settings.gateway.write_timeout_s)
    return EventStream(reader, frames, limits, over, headers)


def count_over(gateway: Gateway, reader: Reader, over: Over | None) -> None:
    """Count why a reader was over before its log."""
    if over is Over.LEFT and not reader.ended:
        gateway.metrics.disconnects.labels(RequestState.RUNNING if reader.seq else RequestState.QUEUED).inc()
    elif over is Over.CUT:
        gateway.metrics.readers_cut.inc()


def one_line(data: bytes) -> bytes:
    """JSON on one line: within it a line break can only be white space, within SSE it would end the field."""
    return data.replace(b"\r", b" ").replace(b"\n", b" ") if b"\n" in data or b"\r" in data else data


def _pieces(items: Sequence[LogEntry | None], frames: Frames) -> Iterator[bytes]:
    """Frames joined into as few writes as flow control allows."""
    piece = bytearray()
    for item in items:
        piece += frames.rewind() if item is None else frames.entry(item)
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


async def _until_gone(receive: Receive, reader: Reader) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.finish(Over.LEFT)


async def _drop_when_cut(reader: Reader, abort: Callable[[], None]) -> None:
    await reader.until_cut()
    abort()
