"""Many commands in one write, and their replies: the client's pipeline without what we do not use of it.

It stands on the client's connections (who they reach, TLS, passwords, timeouts stay its own), packs by hiredis and reads what
has arrived from its buffer at once. docs/decisions/0021. Never here: which commands go together (batching.py), repeating.
"""

from collections.abc import Sequence
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError


async def exchange(client: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The replies in order, an error reply as the exception it is. Raises what the client raises for a broken round trip."""
    packed = b"".join([hiredis.pack_command(command) for command in commands])
    pool = client.connection_pool
    connection = await pool.get_connection()
    try:
        await connection.send_packed_command(packed)
        replies = await _read(connection, len(commands))
    except BaseException:
        # Replies still on their way would be taken for those of the next who has this connection.
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)
    callbacks = client.response_callbacks
    return [
        callbacks[command[0]](reply) if command[0] in callbacks and not isinstance(reply, Exception) else reply
        for command, reply in zip(commands, replies, strict=True)
    ]


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
