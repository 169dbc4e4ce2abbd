"""Redis is stopped, killed or gone for a while, under streams of real processes: all of them wait, and go on by themselves."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import pytest
import redis as redis_py

from tests.servers import LastingServer, lasting
from tests.system.house import House, Role, house_on
from tests.system.streams import Heard, listen

LEASES = {"PENSTOCK_QUEUE__LEASE_S": "3"}
TOKENS = 300


def body(n: int = 0) -> dict[str, object]:
    return {"model": "demo", "prompt": f"Tell me of the river {n}", "max_tokens": TOKENS}


@dataclass
class Away:
    """A server, a gateway and two workers on it, and streams that are open while something happens."""

    server: LastingServer
    home: House
    gateway: Role
    client: httpx.AsyncClient
    heard: dict[str, Heard] = field(default_factory=dict)

    async def submit(self, n: int) -> str:
        reply = await self.client.post(self.gateway.url + "/v1/requests", json=body(n))
        assert reply.status_code == 202, reply.text
        return str(reply.json()["id"])

    def listen(self, request: str) -> asyncio.Task[None]:
        """On one connection from the start to the end: a stream that breaks fails."""
        heard = self.heard.setdefault(request, Heard())
        return asyncio.create_task(listen(self.client, f"{self.gateway.url}/v1/requests/{request}/events", heard))

    async def until_streaming(self) -> None:
        await self.until(lambda: all(len(heard.events) >= 3 for heard in self.heard.values()), "all streams to begin")
        assert not any(heard.ended for heard in self.heard.values()), "it was over before it began"

    async def until(self, condition: object, what: str, patience_s: float = 30) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            await asyncio.sleep(0.05)

    async def status(self, path: str) -> int:
        return (await self.client.get(self.gateway.url + path)).status_code

    async def refused(self) -> None:
        """Within a few seconds, and then at once: 503 with Retry-After, on readyz and submits; livez stays."""
        deadline = time.monotonic() + 8
        while await self.status("/readyz") != 503:
            assert time.monotonic() < deadline, "readyz does not notice"
            await asyncio.sleep(0.05)
        started = time.monotonic()
        reply = await self.client.post(self.gateway.url + "/v1/requests", json=body(99))
        assert reply.status_code == 503 and 1 <= int(reply.headers["retry-after"]) <= 120, reply.text
        assert reply.json()["error"]["code"] == "redis_unavailable"
        chat = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
        reply = await self.client.post(self.gateway.url + "/v1/chat/completions", json=chat)
        assert reply.status_code == 503 and "retry-after" in reply.headers
        assert time.monotonic() - started < 2, "a known outage is refused at once"
        assert await self.status("/livez") == 200

    async def until_ready(self) -> None:
        deadline = time.monotonic() + 15
        while await self.status("/readyz") != 200:
            assert time.monotonic() < deadline, "readyz does not recover"
            await asyncio.sleep(0.05)

    async def all_well(self) -> None:
        """Ready again; each stream is whole and as it would have been; nobody was charged or restarted."""
        await self.until_ready()
        for request, heard in self.heard.items():
            heard.check_dense()
            assert heard.ended and heard.events[-1].data["state"] == "completed", heard.events[-1]
            record = (await self.client.get(f"{self.gateway.url}/v1/requests/{request}")).json()
            assert (record["status"], record["crashes"]) == ("completed", 0)
            result = (await self.client.get(f"{self.gateway.url}/v1/requests/{request}/result")).json()
            assert result["text"] == heard.text
        for role in self.home.roles:
            assert role.process.poll() is None, f"{role.name} ended:\n{role.log.read_text()[-3000:]}"


@contextlib.asynccontextmanager
async def away(*server_flags: str, workers: int = 2) -> AsyncIterator[Away]:
    with lasting(*server_flags) as server, house_on(server.url) as home:
        gateway = home.gateway(**LEASES)
        for _ in range(workers):
            home.worker("--engine", "sim", "--speed", "1", **LEASES)
        home.until_ready(gateway, workers)
        async with httpx.AsyncClient(timeout=30) as client:
            yield Away(server, home, gateway, client)


async def test_stopped_for_three_seconds() -> None:
    async with away() as a:
        streams = [a.listen(await a.submit(n)) for n in range(4)]
        await a.until_streaming()
        a.server.stop()
        began = time.monotonic()
        late = asyncio.create_task(a.client.post(a.gateway.url + "/v1/requests", json=body(9)))
        await asyncio.sleep(max(0.0, began + 3 - time.monotonic()))
        a.server.go_on()
        assert (await late).status_code in (202, 503), "a submit in the middle waits or is refused"
        await asyncio.gather(*streams)
        await a.all_well()


async def test_killed_and_restarted_on_its_file() -> None:
    async with away("--appendfsync", "always") as a:
        streams = [a.listen(await a.submit(n)) for n in range(4)]
        waiting = [await a.submit(n) for n in range(4, 8)]
        await a.until_streaming()
        a.server.kill()
        await a.refused()
        a.server.start()
        await a.until_ready()
        await asyncio.gather(*streams, *(a.listen(request) for request in waiting))
        await a.all_well()


@pytest.mark.parametrize("how", ["down", "silent"])
async def test_away_for_longer_than_every_lease(how: str) -> None:
    """Eight seconds are more than two leases of three; a client that asks on goes on reading on the same connection."""
    async with away("--appendfsync", "always") as a:
        streams = [a.listen(await a.submit(n)) for n in range(3)]
        await a.until_streaming()
        began = time.monotonic()
        a.server.kill() if how == "down" else a.server.stop()
        await a.refused()
        await asyncio.sleep(max(0.0, began + 8 - time.monotonic()))
        assert await a.status("/readyz") == 503
        a.server.start() if how == "down" else a.server.go_on()
        await asyncio.gather(*streams)
        await a.all_well()


async def test_forgotten_scripts_are_harmless() -> None:
    async with away() as a:
        with redis_py.Redis.from_url(a.server.url) as direct:
            streams = [a.listen(await a.submit(n)) for n in range(2)]
            while not all(stream.done() for stream in streams):
                direct.function_flush()
                direct.script_flush()
                await asyncio.sleep(0.02)
                if len(a.heard) < 6:
                    streams.append(a.listen(await a.submit(len(a.heard))))
            await asyncio.gather(*streams)
        await a.all_well()


async def test_a_server_that_comes_back_empty_serves_again() -> None:
    """Without a file all is forgotten, the models too: nobody has to be restarted for it."""
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as folder:
        server = LastingServer(Path(folder))
        server.start()
        try:
            with house_on(server.url) as home:
                gateway = home.gateway()
                home.worker("--engine", "sim", "--speed", "inf")
                home.until_ready(gateway, 1)
                server.kill()
                server.start()
                async with httpx.AsyncClient(timeout=30) as client:
                    deadline = time.monotonic() + 10
                    while (await client.post(gateway.url + "/v1/requests", json=body())).status_code != 202:
                        assert time.monotonic() < deadline, "the model is unknown for ever"
                        await asyncio.sleep(0.2)
        finally:
            server.kill()


@pytest.fixture(autouse=True)
def not_for_ever() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 90
