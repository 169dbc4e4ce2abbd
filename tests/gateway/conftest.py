"""A gateway with a worker beside it. One server: the laws themselves are tested on both (tests/dispatch)."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from dispatch.fleet import Fleet
from dispatch.queue import Queue
from tests.gateway.helpers import FakeWorker, Running, serving, settings_for, working
from tests.servers import RealServer, binaries, running


@pytest.fixture(scope="session")
def server() -> Iterator[RealServer]:
    with running("valkey" if "valkey" in binaries() else "redis") as found:
        yield found


@pytest.fixture
async def worker(queue: Queue, fleet: Fleet) -> AsyncIterator[FakeWorker]:
    async with working(FakeWorker(queue, fleet)) as fake:
        yield fake


@pytest.fixture
async def gateway(redis: object, server_url: str) -> AsyncIterator[Running]:
    async with serving(settings_for(server_url)) as found:
        yield found


@pytest.fixture(autouse=True)
async def stuck_tasks_tell_where() -> AsyncIterator[None]:
    """Shortly before a test times out, where each task waits: the timeout itself only shows the event loop."""
    loop = asyncio.get_running_loop()

    def tell() -> None:
        for task in asyncio.all_tasks(loop):
            task.print_stack()

    timer = loop.call_later(100, tell)
    yield
    timer.cancel()
