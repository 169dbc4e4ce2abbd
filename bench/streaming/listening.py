"""The lightest HTTP client for a stream: one connection a request, frames as they come. Never here: what a frame means."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

Heard = Callable[[bytes], None]
_END = b"\r\n0\r\n\r\n"


class Stream(asyncio.Protocol):
    """One POST and its answer. `heard` is given whole frames (one or more, bytes of the chunked framing between them)."""

    def __init__(self, request: bytes, heard: Heard) -> None:
        self._request = request
        self._heard = heard
        self._rest = b""
        self._transport: Any = None
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        """Done with the first bytes of the answer's body."""
        self.ended: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        if not self.opened.done():
            head, found, body = data.partition(b"\r\n\r\n")
            if not found:
                self._rest = data
                return
            if head[9:12] != b"200":
                self._fail(RuntimeError(data.decode(errors="replace")))
                return
            if not body:  # the head alone, nothing of the stream yet
                self._rest = data
                return
            self.opened.set_result(None)
            data = body
        through = data.rfind(b"\n\n") + 2
        ended = data.endswith(_END)
        if through > 1:
            self._heard(data[:through])
            data = data[through:]
        self._rest = data
        if ended:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or RuntimeError("the server closed a stream that had not ended"))

    def close(self) -> None:
        """Hear no more of it."""
        if not self.ended.done():
            self.ended.set_result(None)
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: Exception) -> None:
        for each in (self.opened, self.ended):
            if not each.done():
                each.set_exception(error)
                each.exception()  # looked at: a stream nobody awaits yet says nothing to stderr


async def open_stream(port: int, path: str, body: dict[str, object], heard: Heard) -> Stream:
    """A stream whose head was answered."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    _, stream = await asyncio.get_running_loop().create_connection(
        lambda: Stream(head.encode() + content, heard), "127.0.0.1", port
    )
    await stream.opened
    return stream
