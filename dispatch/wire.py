"""Many commands in one write, and their replies: the client's pipeline without what we do not use of it.

It stands on the client's connections (who they reach, TLS, passwords, timeouts stay its own), packs by hiredis and reads what
has arrived from its buffer at once. docs/decisions/0021. Never here: which commands go together (batching.py), repeating.
"""

from collections.abc import Sequence
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

_RAW = frozenset({"FCALL", "HMGET", "XREAD"})
"""Most commands, whose replies are as they come: known without asking the client's table, which folds names."""


class Wire:
    """A connection of the client's pool, for one who has batch after batch. Give it back with `release`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._connection: Any = None

    async def exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The replies in order, an error reply as the exception it is. Raises what the client raises for a broken round trip."""
        packed = b"".join([hiredis.pack_command(command) for command in commands])
        if self._connection is None:
            self._connection = await self._client.connection_pool.get_connection()
        try:
            await self._connection.send_packed_command(packed)
            replies = await _read(self._connection, len(commands))
        except BaseException:
            # Replies still on their way would be taken for those of the next who has this connection.
            await self._connection.disconnect(nowait=True)
            await self.release()
            raise
        callbacks = self._client.response_callbacks
        for n, (name, *_) in enumerate(commands):
            if name not in _RAW and name in callbacks and not isinstance(replies[n], Exception):
                replies[n] = callbacks[name](replies[n])
        return replies

    async def release(self) -> None:
        """Back to the pool."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._client.connection_pool.release(connection)


async def _read(connection: Any, count: int) -> list[Any]:
    replies: list[Any] = []
    while len(replies) < count:
        try:
            replies.append(await connection.read_response())
        except ResponseError as error:
            replies.append(error)
        # What came with it is read without another await. A client that keeps its buffer elsewhere is asked for each.
        reader = getattr(getattr(connection, "_parser", None), "_reader", None)
        if isinstance(reader, hiredis.Reader):
            while len(replies) < count and reader.has_data():
                reply = reader.gets()
                if type(reply) is object:  # the client's mark for "not all of it is here"
                    break
                if isinstance(reply, RedisConnectionError):
                    raise reply
                replies.append(reply)
    return replies
