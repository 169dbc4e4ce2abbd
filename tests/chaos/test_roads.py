"""A road leads through its role's own proxies, whatever a sentinel names; only a launched role's end is told at once."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoscaler.launchers.base import Exit
from chaos.faults import FAULTS, SENTINEL
from chaos.history import Recorder
from chaos.house import House
from chaos.roads import Road
from dispatch.rules import QueueRules
from tests.ports import free_port

WIRE = {"cut", "drop-replies", "delay", "partition", "one-way", "refuse"}


@asynccontextmanager
async def saying(port: int, reply: bytes) -> AsyncIterator[None]:
    """A server that answers each line with the same."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            writer.write(reply)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()


async def ask(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"who\n")
        return await asyncio.wait_for(reader.read(100), 0.5)
    except (TimeoutError, ConnectionError):
        return b""
    finally:
        writer.close()


def ports_of(road: Road) -> list[int]:
    """Of its sentinels' proxies, as the role is told."""
    return [int(host.rpartition(":")[2]) for host in road.url.removeprefix("redis+sentinel://").split("/")[0].split(",")]


async def test_a_sentinel_names_the_proxy_of_the_master_and_all_misbehave_together() -> None:
    first, second, sentinel = free_port(), free_port(), free_port()
    named = f"*2\r\n$9\r\n127.0.0.1\r\n${len(str(second))}\r\n{second}\r\n".encode()
    async with saying(first, b"first"), saying(second, b"second"), saying(sentinel, named):
        road = Road([first, second], [sentinel], "penstock", random.Random(1))
        await road.start()
        try:
            (way_in,) = ports_of(road)
            reply = await ask(way_in)
            led_to = int(reply.split(b"\r\n")[4])
            assert led_to not in (first, second) and len(reply) == len(named)
            assert await ask(led_to) == b"second"
            road.misbehave(refuse=True)
            assert (await ask(way_in), await ask(led_to)) == (b"", b"")
            road.heal()
            assert await ask(led_to) == b"second"
            road.misbehave(silent=True)
            assert (await ask(way_in), await ask(led_to)) == (b"", b"")
            road.heal()
            assert await ask(way_in) == reply
        finally:
            await road.close()


async def test_a_single_server_has_one_proxy() -> None:
    port = free_port()
    async with saying(port, b"it"):
        road = Road([port], [], "penstock", random.Random(1))
        await road.start()
        try:
            assert await ask(int(road.url.rpartition(":")[2].removesuffix("/0"))) == b"it"
        finally:
            await road.close()


def test_sentinel_runs_have_the_faults_of_the_wire() -> None:
    assert {name for name, fault in FAULTS.items() if SENTINEL in fault.topologies} >= WIRE


@pytest.mark.parametrize("launched", [True, False])
async def test_only_a_launched_workers_end_is_told(tmp_path: Path, launched: bool) -> None:
    port, told = free_port(), asyncio.Queue[Exit]()

    async def of(end: Exit) -> int:
        told.put_nowait(end)
        return 0

    server: Any = SimpleNamespace(processes={"server": SimpleNamespace(port=port)}, url=lambda: f"redis://127.0.0.1:{port}/0")
    with Recorder(tmp_path / "history.jsonl") as record:
        house = House(tmp_path, server, QueueRules(), record, 1)
        house._aftermath.of = of  # type: ignore[method-assign]
        role = await house.worker("w", "no-such-engine", (), {}, launched=launched)
        try:
            async with asyncio.timeout(30):
                while b'"what":"exit"' not in (tmp_path / "history.jsonl").read_bytes():  # noqa: ASYNC110 - a file tells nobody
                    await asyncio.sleep(0.05)
            if launched:
                end = await asyncio.wait_for(told.get(), 5)
                assert (end.name, end.code) == ("w", 2)
            else:
                assert told.empty()
        finally:
            await house.close()
        assert role.launched is launched
