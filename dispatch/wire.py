"""Many commands in one write, and their replies: the client's pipeline without what we do not use of it.

The client makes the connection (who it reaches, TLS, passwords, its timeouts stay its own); once it stands, its bytes come
straight to us: docs/decisions/0021, 0029. Never here: which commands go together (batching.py), repeating.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

_RAW = frozenset({"FCALL", "HMGET", "XREAD"})
"""Most commands, whose replies are as they come: known without asking the client's table, which folds names."""


class Wire:
    """A connection of the client's pool, for one who has batch after batch. One exchange at a time."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._connection: Any = None
        self._replies: _Replies | None = None

    async def exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The replies in order, an error reply as the exception it is. Raises what the client raises for a broken round trip."""
        packed = b"".join([hiredis.pack_command(command) for command in commands])
        if not self.is_open:
            await self._connect()
        assert self._replies is not None
        try:
            replies = await self._replies.ask(packed, len(commands))
        except BaseException:
            # Replies still on their way would be taken for those of the next exchange.
            await self.close()
            raise
        callbacks = self._client.response_callbacks
        for n, (name, *_) in enumerate(commands):
            if name not in _RAW and name in callbacks and not isinstance(replies[n], Exception):
                replies[n] = callbacks[name](replies[n])
        return replies

    @property
    def is_open(self) -> bool:
        """Whether its connection stands, as far as is known."""
        return self._replies is not None and not self._replies.is_lost

    async def _connect(self) -> None:
        await self.close()  # one that was cut while nobody used it
        self._connection = await self._client.connection_pool.get_connection()
        self._replies = _Replies(self._connection)

    async def close(self) -> None:
        """End the connection; the pool has its place again. The next exchange makes another."""
        connection, self._connection, self._replies = self._connection, None, None
        if connection is not None:
            await connection.disconnect(nowait=True)
            await self._client.connection_pool.release(connection)


class Wires:
    """Wires of one client that nobody uses at the moment. Some are kept open: who asks again and again does not ask the pool
    each time. All who speak through the client share them, so that none is lost with whoever used it."""

    def __init__(self, client: Any, keep: int) -> None:
        self._client = client
        self._keep = keep
        self._kept: list[Wire] = []

    def take(self) -> Wire:
        """A wire for one who gives it back."""
        return self._kept.pop() if self._kept else Wire(self._client)

    async def give_back(self, wire: Wire) -> None:
        """It is kept, or closed where enough are or it is of no use."""
        if wire.is_open and len(self._kept) < self._keep:
            self._kept.append(wire)
        else:
            await wire.close()


class _Replies(asyncio.Protocol):
    """What comes over a connection, in place of the client's own stream; that one still hears when it is over."""

    def __init__(self, connection: Any) -> None:
        self.is_lost = False
        self._connection = connection
        self._transport = connection._writer.transport
        self._stream = self._transport.get_protocol()
        self._reader = hiredis.Reader(replyError=connection._parser.parse_error)
        self._loop = asyncio.get_running_loop()
        self._found: list[Any] = []
        self._wanted = 0
        self._hears = False  # since the watch began
        self._late: asyncio.TimerHandle
        self._all: asyncio.Future[list[Any]] | None = None
        self._transport.set_protocol(self)

    async def ask(self, packed: bytes, count: int) -> list[Any]:
        """So many replies to what is sent. Raises the client's ConnectionError or TimeoutError."""
        self._found, self._wanted, self._all = [], count, self._loop.create_future()
        self._hears = False
        self._watch()
        try:
            try:
                self._transport.write(packed)
            except RuntimeError as error:  # uvloop's word for a wire that was cut
                raise RedisConnectionError(f"Error while writing to socket: {error}") from error
            found = await self._all
        finally:
            self._all = None
            self._late.cancel()
        if self._connection.leaves_replicas and any(isinstance(reply, ReadOnlyError) for reply in found):
            raise RedisConnectionError("The master is a replica now")
        return found

    def _watch(self) -> None:
        """Too late is when nothing came for so long."""
        self._late = self._loop.call_later(self._connection.socket_timeout, self._if_silent)

    def _if_silent(self) -> None:
        if self._hears:
            self._hears = False
            self._watch()
        else:
            self._fail(RedisTimeoutError("Timeout reading replies"))

    def data_received(self, data: bytes) -> None:
        self._hears = True
        self._reader.feed(data)
        try:
            while len(self._found) < self._wanted:
                reply = self._reader.gets()
                if reply is False:
                    return
                self._found.append(reply)
        except hiredis.ProtocolError as error:
            self._fail(RedisConnectionError(f"Error while reading replies: {error}"))
            return
        if self._all is None or self._all.done() or self._reader.has_data():
            # What nobody asked for would be taken for the first reply to what is asked next.
            self.is_lost = True
            self._transport.abort()
            return
        self._all.set_result(self._found)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._fail(RedisConnectionError(f"Connection closed by server: {exc}" if exc else "Connection closed by server."))
        self._stream.connection_lost(exc)

    def _fail(self, error: Exception) -> None:
        if self._all is not None and not self._all.done():
            self._all.set_exception(error)
