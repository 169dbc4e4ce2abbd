"""Every broken wire is told in one way, whatever the event loop calls it."""

import asyncio

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError

from dispatch.redis_client import connect


async def _write_to_a_closed_wire(url: str) -> None:
    client = connect(url, max_connections=1)
    await client.ping()
    connection = await client.connection_pool.get_connection()
    connection._writer.transport.abort()
    await asyncio.sleep(0)
    try:
        with pytest.raises(RedisConnectionError):
            for _ in range(20):  # the loop may take the first writes without noticing
                await connection.send_packed_command([b"*1\r\n$4\r\nPING\r\n"], check_health=False)
                await asyncio.sleep(0.01)
    finally:
        await client.connection_pool.release(connection)
        await client.aclose()


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_a_cut_wire_is_a_connection_error(server_url: str, loop: object) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]
        runner.run(_write_to_a_closed_wire(server_url))
