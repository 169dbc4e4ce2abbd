"""The lightest client of a Redis there can be here, so that one process can play a thousand workers: bytes out, replies in order.

No pool, no timeout, no retry: for benchmarks alone. Never here: what is said.
"""

import asyncio
from collections import deque
from typing import Any
from urllib.parse import urlsplit

import hiredis


class Wire(asyncio.Protocol):
    """One connection. `execute` is what `dispatch.batching.Batched` has, so the laws run on it as they are."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any] | None] = deque()
        self._transport: Any = None

    @classmethod
    async def to(cls, url: str) -> "Wire":
        """Connected to a unix:// URL, or a redis:// one without a password."""
        loop = asyncio.get_running_loop()
        if url.startswith("unix://"):
            return (await loop.create_unix_connection(cls, url.removeprefix("unix://")))[1]
        parts = urlsplit(url)
        return (await loop.create_connection(cls, parts.hostname, parts.port))[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future = self._waiting.popleft()
            if future is not None and not future.done():
                if isinstance(reply, hiredis.HiredisError):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
            elif isinstance(reply, hiredis.HiredisError):
                raise reply

    async def execute(self, *command: Any) -> Any:
        """The reply to one command."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._transport.write(hiredis.pack_command(command))
        return await future

    async def join(self, own: tuple[Any, ...], *command: Any) -> Any:
        """The reply to one command that takes several of these words: here it goes alone."""
        (reply,) = await self.execute(*command, *own)
        if isinstance(reply, hiredis.HiredisError):
            raise reply
        return reply

    def say(self, packed: bytes, commands: int) -> None:
        """Commands whose replies nobody needs (an error still ends the process)."""
        self._waiting.extend([None] * commands)
        self._transport.write(packed)

    def close(self) -> None:
        self._transport.close()
