"""The durability modes on real servers: refused where they cannot be kept, and kept where they are accepted."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis as redis_py
from redis.asyncio import Redis

from dispatch import messages as m
from dispatch.checks import check_url
from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT, NotReplicated, as_penstock
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from dispatch.settings import Durability
from tests.ports import free_port
from tests.servers import LastingServer, lasting


def new(n: int) -> m.NewRequest:
    return m.NewRequest(f"s0.{n:032x}", "demo", b"{}", m.InputKind.CHAT, 10, 3_600_000)


@contextlib.contextmanager
def replicated() -> Iterator[tuple[LastingServer, LastingServer]]:
    """A master and a replica of it."""
    with lasting() as master, tempfile.TemporaryDirectory(prefix="penstock-test-") as folder:
        port = free_port()
        with redis_py.Redis.from_url(master.url) as direct:
            direct.config_set("port", port)
        replica = LastingServer(Path(folder), "--replicaof", "127.0.0.1", str(port), "--repl-diskless-sync-delay", "0")
        replica.start()
        try:
            with redis_py.Redis.from_url(replica.url) as direct:
                until(lambda: direct.info("replication")["master_link_status"] == "up")
            yield master, replica
        finally:
            with contextlib.suppress(ProcessLookupError):
                replica.go_on()
            replica.kill()


def until(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.asynccontextmanager
async def queue_on(url: str, wait_replica_ms: int = 0) -> AsyncIterator[tuple[Queue, Redis]]:
    client = connect(url)
    try:
        yield Queue(client, QueueRules(), wait_replica_ms=wait_replica_ms), client
    finally:
        await client.aclose()


async def refusal(url: str, mode: Durability) -> str:
    with pytest.raises(PenstockError) as caught:
        await check_url(url, mode)
    assert caught.value.code == "redis_unsuitable" and caught.value.hint
    return caught.value.message


async def test_a_server_without_a_file_is_refused_for_aof(server_url: str) -> None:
    await check_url(server_url, Durability.MEMORY)
    for mode in (Durability.AOF, Durability.AOF_ALWAYS):
        assert "no append-only file" in await refusal(server_url, mode)
    assert "no replica" in await refusal(server_url, Durability.REPLICATED)


async def test_aof_always_wants_each_write_on_the_disk() -> None:
    with lasting("--appendfsync", "everysec") as server:
        await check_url(server.url, Durability.AOF)
        assert "before that is on the disk" in await refusal(server.url, Durability.AOF_ALWAYS)
        with redis_py.Redis.from_url(server.url) as direct:
            direct.config_set("appendfsync", "always")
            await check_url(server.url, Durability.AOF_ALWAYS)
            direct.config_set("no-appendfsync-on-rewrite", "yes")
            assert "rewrites" in await refusal(server.url, Durability.AOF_ALWAYS)


async def test_who_may_not_look_is_told() -> None:
    with lasting() as server:
        with redis_py.Redis.from_url(server.url) as direct:
            direct.execute_command("ACL", "SETUSER", "default", "-config")
        assert "CONFIG GET" in await refusal(server.url, Durability.AOF)


async def test_replicated_wants_a_replica_and_no_writes_without() -> None:
    with replicated() as (master, _):
        assert "without any replica" in await refusal(master.url, Durability.REPLICATED)
        with redis_py.Redis.from_url(master.url) as direct:
            direct.config_set("min-replicas-to-write", 1)
        await check_url(master.url, Durability.REPLICATED)


async def test_an_accepted_request_is_on_the_replica() -> None:
    with replicated() as (master, replica):
        async with queue_on(master.url, 1000) as (queue, _), queue_on(replica.url) as (there, _):
            for n in range(1, 101):
                await queue.enqueue(new(n))
                record = await there.record(new(n).id)
                assert record is not None, n


async def test_without_the_replicas_word_it_is_not_accepted_and_may_be_asked_again() -> None:
    with replicated() as (master, replica):
        async with queue_on(master.url, 100) as (queue, client):
            await queue.enqueue(new(1))
            replica.stop()
            for _ in range(2):  # the second writes nothing of its own; it must not be taken for replicated either
                with pytest.raises(NotReplicated) as caught:
                    await queue.enqueue(new(2))
            error = as_penstock(caught.value)
            assert error.kind.status == 503 and error.kind.retryable and "Idempotency-Key" in error.hint
            began = time.monotonic()
            await asyncio.gather(*(queue.record(new(1).id) for _ in range(50)))
            assert time.monotonic() - began < 0.1, "what was not promised waits for no replica"
            replica.go_on()
            done = await queue.enqueue(new(2))
            assert done.status is m.EnqueueStatus.OK
            assert await client.pttl("{s0}:waited") > 0
        async with queue_on(replica.url) as (there, _):
            assert await there.record(new(2).id) is not None


@pytest.mark.parametrize("fsync", ["always", "everysec"])
async def test_a_killed_server_comes_back_with_all_it_acknowledged(fsync: str) -> None:
    """SIGKILL leaves what was written in the kernel's hands, so `everysec` loses none of that; a power loss would.

    But with `everysec` a server whose disk is still busy with the last sync writes up to 2 s later: what counts was written.
    """
    with lasting("--appendfsync", fsync) as server:
        accepted: list[str] = []
        async with queue_on(server.url) as (queue, client):
            stop = asyncio.Event()

            async def submit(first: int) -> None:
                for n in range(first, first + 100_000):
                    try:
                        accepted.append((await queue.enqueue(new(n))).id)
                    except STORE_FAULT:
                        return
                    if stop.is_set():
                        return

            before = [asyncio.create_task(submit(1 + k * 1_000_000)) for k in range(8)]
            await asyncio.to_thread(until, lambda: len(accepted) >= 1000)
            if fsync == "everysec":
                stop.set()
                await asyncio.gather(*before)
                while (await client.info("persistence"))["aof_buffer_length"]:  # noqa: ASYNC110 - the server tells nobody
                    await asyncio.sleep(0.01)
                stop.clear()
            written = len(accepted)
            submitting = [asyncio.create_task(submit(1 + k * 1_000_000)) for k in range(8, 16)]
            await asyncio.to_thread(until, lambda: len(accepted) >= written + 100)
            server.kill()
            await asyncio.gather(*before, *submitting)
        server.start()
        async with queue_on(server.url) as (queue, _):
            promised = accepted if fsync == "always" else accepted[:written]
            found = await asyncio.gather(*(queue.record(request) for request in promised))
            assert all(found), f"{found.count(None)} of {len(found)} lost"
