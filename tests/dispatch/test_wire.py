"""Wires: what is kept open between batches, and what becomes of it when it is cut."""

import asyncio
import contextlib
import ssl
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from dispatch.batching import Batched
from dispatch.redis_client import connect
from dispatch.wire import Wire


async def _clients(redis: Any) -> set[bytes]:
    return {line.split()[0] for line in (await redis.execute_command("CLIENT", "LIST", "TYPE", "normal")).splitlines()}


async def _number(wire: Wire) -> Any:
    return (await wire.exchange([("CLIENT", "ID")]))[0]


async def test_who_asks_again_has_the_same_connection(redis: Redis, server_url: str) -> None:
    client = connect(server_url)
    batched = Batched(client)
    numbers = {await batched.execute("CLIENT", "ID") for _ in range(20)}
    assert len(numbers) == 1
    await client.aclose()


async def test_of_a_small_pool_one_connection_is_left(server_url: str) -> None:
    client = connect(server_url, max_connections=2)
    batched = Batched(client)
    async with asyncio.timeout(4):
        numbers = await asyncio.gather(*(batched.execute("CLIENT", "ID") for _ in range(600)))
        assert len(set(numbers)) == 2, "both lanes were to be busy"
        assert await client.ping()
    await client.aclose()


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_one_that_was_cut_while_nobody_used_it_is_replaced(server_url: str, loop: Any) -> None:
    async def story() -> None:
        client, other = connect(server_url), connect(server_url, max_connections=1)
        wire = Wire(client)
        first = await _number(wire)
        await other.execute_command("CLIENT", "KILL", "ID", first)
        async with asyncio.timeout(5):
            while wire._replies and not wire._replies.is_lost:
                await other.ping()
            assert await _number(wire) != first
        await wire.close()
        assert client.connection_pool._in_use_connections == set()
        await client.aclose()
        await other.aclose()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_one_that_is_cut_in_the_middle_is_an_error_of_the_client(server_url: str, loop: Any) -> None:
    async def story() -> None:
        client, other = connect(server_url), connect(server_url, max_connections=1)
        wire = Wire(client)
        number = await _number(wire)
        reading = asyncio.create_task(wire.exchange([("XREAD", "BLOCK", 4_000, "STREAMS", "nothing", "0")]))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            assert await other.execute_command("CLIENT", "KILL", "ID", number)
            with pytest.raises(RedisConnectionError):
                await reading
        assert await _number(wire) != number
        await client.aclose()
        await other.aclose()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def test_a_server_that_says_nothing_is_late(redis: Redis, server_url: str) -> None:
    client = connect(server_url)
    client.connection_pool.connection_kwargs["socket_timeout"] = 0.2
    wire = Wire(client)
    with pytest.raises(RedisTimeoutError):
        await wire.exchange([("XREAD", "BLOCK", 3_000, "STREAMS", "nothing", "0")])
    assert await _number(wire)
    await client.aclose()


async def test_who_breaks_off_leaves_no_reply_to_the_next(server_url: str) -> None:
    client = connect(server_url)
    wire = Wire(client)
    await _number(wire)
    reading = asyncio.create_task(wire.exchange([("XREAD", "BLOCK", 50, "STREAMS", "nothing", "0")]))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert await wire.exchange([("ECHO", "mine")]) == [b"mine"]
    await client.aclose()


async def test_errors_stand_in_their_place(server_url: str) -> None:
    client = connect(server_url)
    first, error, last = await Wire(client).exchange([("ECHO", "a"), ("NONSENSE",), ("ECHO", "b")])
    assert (first, last) == (b"a", b"b") and isinstance(error, Exception)
    await client.aclose()


async def test_only_who_follows_a_master_leaves_a_replica(server_url: str) -> None:
    client = connect(server_url)
    say = ("EVAL", "return redis.error_reply('READONLY no writes here')", 0)
    wire = Wire(client)
    assert isinstance((await wire.exchange([say]))[0], ReadOnlyError)
    wire._connection.leaves_replicas = True
    with pytest.raises(RedisConnectionError, match="replica"):
        await wire.exchange([say])
    await client.aclose()


async def test_what_nobody_asked_for_is_nobodys_reply(server_url: str) -> None:
    client = connect(server_url)
    wire = Wire(client)
    first = await _number(wire)
    assert wire._replies is not None
    wire._replies.data_received(b"+unasked\r\n")
    assert not wire.is_open and await _number(wire) != first
    assert wire._replies is not None
    asking = asyncio.ensure_future(wire.exchange([("ECHO", "mine")]))
    await asyncio.sleep(0)
    wire._replies.data_received(b"$4\r\nmine\r\n+unasked\r\n")
    with pytest.raises(RedisConnectionError):
        await asking
    assert await wire.exchange([("ECHO", "mine")]) == [b"mine"]
    await client.aclose()


async def test_a_long_reply_may_take_longer_than_silence(server_url: str) -> None:
    client = connect(server_url)
    client.connection_pool.connection_kwargs["socket_timeout"] = 0.4
    wire = Wire(client)
    waits = [("XREAD", "BLOCK", 250, "STREAMS", "nothing", "0")] * 4
    assert await wire.exchange(waits) == [None] * 4
    await client.aclose()


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_over_tls_it_is_the_same(server_url: str, tls: ssl.SSLContext, loop: Any) -> None:
    async def story() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_unix_connection(urlsplit(server_url).path)
            await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        client = connect(f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
        wire = Wire(client)
        long = b"x" * 300_000
        assert await wire.exchange([("ECHO", long), ("ECHO", "b")]) == [long, b"b"]
        first = await _number(wire)
        assert await _number(wire) == first
        await wire.close()
        assert await _number(wire) != first
        await client.aclose()
        server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
