"""Which Sentinel is believed: one that names a dead server or a replica is asked last, and cuts nobody off; TLS to them too.

The Sentinels are played: a real one cannot be made to hold a stale opinion. The group itself: tests/system/test_sentinel.py.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from dispatch.redis_client import connect


class Played:
    """A Sentinel that names one server, or a server with one role; `asked` counts the questions.

    `recorded`: what its record of the group still says while it leads a failover (0: the same).
    """

    def __init__(self, role: str = "", names: int = 0) -> None:
        self.names, self.role, self.asked = names, role, 0
        self.epoch = 0
        self.recorded = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while words := await self._command(reader):
            if words[:2] == ["SENTINEL", "MASTER"]:
                said = ["ip", "127.0.0.1", "port", str(self.recorded or self.names), "config-epoch", str(self.epoch)]
                writer.write(
                    f"*{len(said)}\r\n{''.join(f'${len(w)}{chr(13)}{chr(10)}{w}{chr(13)}{chr(10)}' for w in said)}".encode()
                )
            elif words[0] == "SENTINEL":
                self.asked += 1
                port = str(self.names)
                writer.write(f"*2\r\n$9\r\n127.0.0.1\r\n${len(port)}\r\n{port}\r\n".encode())
            elif words[0] == "ROLE":
                writer.write(f"*1\r\n${len(self.role)}\r\n{self.role}\r\n".encode())
            else:
                writer.write(b"+PONG\r\n" if words[0] == "PING" else b"+OK\r\n")
        writer.close()

    async def _command(self, reader: asyncio.StreamReader) -> list[str]:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            words = []
            for _ in range(int((await reader.readuntil(b"\r\n"))[1:])):
                size = int((await reader.readuntil(b"\r\n"))[1:])
                words.append((await reader.readexactly(size + 2))[:-2].decode())
            return words
        return []


@contextlib.asynccontextmanager
async def playing(played: Played, tls: ssl.SSLContext | None = None) -> AsyncIterator[Played]:
    server = await asyncio.start_server(played.serve, "127.0.0.1", 0, ssl=tls)
    played.port = server.sockets[0].getsockname()[1]
    try:
        yield played
    finally:
        server.close()


@pytest.fixture
async def master() -> AsyncIterator[int]:
    async with playing(Played(role="master")) as played:
        yield played.port


@pytest.fixture
def dead_port() -> Iterator[int]:
    with socket.socket() as bound:  # bound and not listening: refused
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def group(*sentinels: Played, scheme: str = "redis+sentinel") -> str:
    return f"{scheme}://{','.join(f'127.0.0.1:{sentinel.port}' for sentinel in sentinels)}/penstock/0"


async def pinged(url: str, attempts: int) -> int:
    """After how many attempts it was answered."""
    client = connect(url)
    try:
        for attempt in range(1, attempts + 1):
            with contextlib.suppress(RedisError):
                if await client.ping():
                    return attempt
        raise AssertionError(f"not answered within {attempts} attempts")
    finally:
        await client.aclose()


async def pinged_by(client: Redis, attempts: int) -> int:
    """The port of the server that answered."""
    for _ in range(attempts):
        with contextlib.suppress(RedisError):
            connection = await client.connection_pool.get_connection()
            await client.connection_pool.release(connection)
            return int(connection.port)
    raise AssertionError(f"not connected within {attempts} attempts")


async def test_a_sentinel_that_names_a_dead_port_is_asked_last(master: int, dead_port: int) -> None:
    async with playing(Played(names=dead_port)) as stale, playing(Played(names=master)) as sound:
        assert await pinged(group(stale, sound), attempts=4) == 2
        assert (stale.asked, sound.asked) == (1, 1)


async def test_a_sentinel_that_names_a_replica_is_asked_last(master: int) -> None:
    async with (
        playing(Played(role="slave")) as replica,
        playing(Played(names=replica.port)) as stale,
        playing(Played(names=master)) as sound,
    ):
        assert await pinged(group(stale, sound), attempts=4) == 2
        assert (stale.asked, sound.asked) == (1, 1)


@pytest.mark.parametrize("role", ["", "slave"])
async def test_hearsay_cuts_nobody_off(master: int, dead_port: int, role: str) -> None:
    async with playing(Played(role=role)) as replica, playing(Played(names=master)) as sentinel:
        client = connect(group(sentinel))
        try:
            first = await client.connection_pool.get_connection()
            sentinel.names = replica.port if role else dead_port
            with pytest.raises(RedisError):
                await client.ping()
            await first.send_command("PING")
            assert await first.read_response() == b"PONG"
            await client.connection_pool.release(first)
        finally:
            await client.aclose()


@pytest.mark.parametrize("leads", [False, True], ids=["heard_of_it", "leads_it"])
async def test_a_newer_failover_is_followed_though_the_old_master_serves_on(master: int, leads: bool) -> None:
    """Nobody cuts the connection and nobody asks for a new one: what a failover that was asked for looks like at first."""
    async with (
        playing(Played(role="master")) as other,
        playing(Played(names=master)) as stale,
        playing(Played(names=master)) as sound,
    ):
        client = connect(group(stale, sound))
        try:
            stale.epoch = sound.epoch = 1
            held = await client.connection_pool.get_connection()
            sound.names, sound.epoch, sound.recorded = other.port, 2, master if leads else 0
            async with asyncio.timeout(10):
                with pytest.raises((RedisError, ConnectionError)):
                    while True:
                        await held.send_command("PING")
                        await held.read_response()
                        await asyncio.sleep(0.05)
            await client.connection_pool.release(held)
            assert await pinged_by(client, attempts=4) == other.port, "the stale Sentinel's word does not lead back"
        finally:
            await client.aclose()


async def test_a_server_that_says_it_is_the_master_takes_the_connections(master: int) -> None:
    async with playing(Played(role="master")) as other, playing(Played(names=master)) as sentinel:
        client = connect(group(sentinel))
        try:
            first = await client.connection_pool.get_connection()
            sentinel.names = other.port
            assert await client.ping()
            with pytest.raises((RedisError, OSError)):
                await first.send_command("PING")
                await first.read_response()
            await client.connection_pool.release(first)
        finally:
            await client.aclose()


async def test_tls_reaches_the_sentinels_too(tls: ssl.SSLContext) -> None:
    async with playing(Played(role="master"), tls) as server, playing(Played(names=server.port), tls) as sentinel:
        assert await pinged(group(sentinel, scheme="rediss+sentinel"), attempts=1) == 1
        assert sentinel.asked == 1
