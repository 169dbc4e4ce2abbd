"""The proxy passes everything on, and misbehaves as it is told."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from chaos.proxy import Proxy

Echo = tuple[Proxy, Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]], list[bytes]]


@asynccontextmanager
async def echoing() -> AsyncIterator[Echo]:
    """A proxy before a server that says back what it hears, and what that server heard."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            heard.append(line)
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1], random.Random(1))
    await proxy.start()
    writers: list[asyncio.StreamWriter] = []

    async def open_one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writers.append(writer)
        return reader, writer

    try:
        yield proxy, open_one, heard
    finally:
        for writer in writers:
            writer.close()
        await proxy.close()
        server.close()


async def test_it_passes_both_ways() -> None:
    async with echoing() as (_, open_one, _):
        reader, writer = await open_one()
        writer.write(b"a\n")
        assert await reader.readline() == b"a\n"


async def test_a_dropped_reply_was_executed() -> None:
    async with echoing() as (proxy, open_one, heard):
        proxy.now.drop_reply = 1.0
        reader, writer = await open_one()
        writer.write(b"a\n")
        with pytest.raises(ConnectionResetError):
            assert await reader.read() == b""
            raise ConnectionResetError
        assert heard == [b"a\n"]
        assert proxy.dropped == 1


async def test_a_partition_passes_nothing_and_is_cut_when_it_heals() -> None:
    async with echoing() as (proxy, open_one, heard):
        reader, writer = await open_one()
        writer.write(b"a\n")
        await reader.readline()
        proxy.now.silent = True
        writer.write(b"b\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), 0.2)
        assert heard == [b"a\n"]
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            assert await reader.read() == b""
            raise ConnectionResetError


async def test_cut_and_refuse() -> None:
    async with echoing() as (proxy, open_one, _):
        reader, writer = await open_one()
        writer.write(b"a\n")
        await reader.readline()
        assert proxy.cut() == 1
        proxy.now.refuse = True
        with pytest.raises(ConnectionResetError):
            second, _ = await open_one()
            assert await second.read() == b""
            raise ConnectionResetError
