"""Redis comes back with an older state: accepted requests are given back to it, and no stream is spliced of two pasts."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator

import openai
import redis as redis_py

from tests.system.house import Role
from tests.system.streams import Heard, events
from tests.system.test_redis_away import Away, away


class Past:
    """A copy of the server's file, taken while it runs, to which it can be put back."""

    def __init__(self, a: Away) -> None:
        self._server = a.server
        self._copy = a.server.folder / "copy"

    def take(self) -> None:
        """Now. `appendfsync always` has every acknowledged write in the file."""
        shutil.copytree(self._server.folder / "appendonlydir", self._copy)

    def go_back(self) -> None:
        self._server.kill()
        shutil.rmtree(self._server.folder / "appendonlydir")
        shutil.copytree(self._copy, self._server.folder / "appendonlydir")
        self._server.start()


@contextlib.asynccontextmanager
async def away_always(workers: int = 1) -> AsyncIterator[Away]:
    async with away("--appendfsync", "always", workers=workers) as a:
        yield a


async def native(a: Away, gateway: Role, request: str, heard: Heard) -> int:
    """Read to the end on one connection; how often it rewound."""
    rewinds = 0
    async for event in events(a.client, f"{gateway.url}/v1/requests/{request}/events"):
        if event.name == "rewind":
            rewinds += 1
            heard.events.clear()
        elif event.name == "error":
            raise AssertionError(event.data)
        elif event.name != "status":
            heard.events.append(event)
        if event.name == "end":
            return rewinds
    raise AssertionError("the stream broke off")


async def test_what_was_accepted_is_given_back_and_done() -> None:
    async with away_always() as a:
        past = Past(a)
        past.take()
        running, waiting = await a.submit(1), [await a.submit(n) for n in range(2, 6)]
        heard = Heard()
        stream = asyncio.create_task(native(a, a.gateway, running, heard))
        await a.until(lambda: len(heard.events) >= 5, "the stream to begin")
        await asyncio.to_thread(past.go_back)
        async with asyncio.timeout(60):
            rewinds = await stream
        heard.check_dense()
        assert heard.events[-1].data["state"] == "completed" and rewinds <= 1
        for request in (running, *waiting):
            reply = await a.client.get(f"{a.gateway.url}/v1/requests/{request}?wait=20")
            assert reply.status_code == 200 and reply.json()["status"] == "completed", reply.text
        result = (await a.client.get(f"{a.gateway.url}/v1/requests/{running}/result")).json()
        assert result["text"] == heard.text


async def test_a_shorter_log_rewinds_at_every_gateway() -> None:
    """Back to when it had begun to answer: what came after never was, and goes on otherwise."""
    async with away_always() as a:
        other = a.home.gateway(PENSTOCK_QUEUE__LEASE_S="3")
        past = Past(a)
        request = await a.submit(1)
        here, there = Heard(), Heard()
        streams = [asyncio.create_task(native(a, g, request, h)) for g, h in ((a.gateway, here), (other, there))]
        await a.until(lambda: len(here.events) >= 3, "the stream to begin")
        past.take()
        size = len(here.events)
        await a.until(lambda: min(len(here.events), len(there.events)) >= size + 20, "the streams to go on")
        await asyncio.to_thread(past.go_back)
        async with asyncio.timeout(60):
            rewinds = await asyncio.gather(*streams)
        assert here.text == there.text
        for heard in (here, there):
            heard.check_dense()
        result = (await a.client.get(f"{other.url}/v1/requests/{request}/result")).json()
        assert result["text"] == here.text, rewinds


async def test_an_openai_stream_ends_with_an_error_and_not_with_a_splice() -> None:
    async with away_always() as a:
        past = Past(a)
        past.take()
        client = openai.AsyncOpenAI(base_url=a.gateway.url + "/v1", api_key="none", max_retries=0, timeout=60)
        text, code = "", None
        try:
            stream = await client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": "Tell me of the sea"}], max_tokens=300, stream=True
            )
            back = None
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if len(text) > 50 and back is None:
                    back = asyncio.create_task(asyncio.to_thread(past.go_back))
        except openai.APIError as error:
            code = error.code
        finally:
            await client.close()
        assert code == "stream_rewound" and len(text) > 50


async def test_nothing_is_given_back_while_the_history_is_the_same() -> None:
    """Deleted is deleted: without another server or history nobody makes a second generation of it."""
    async with away(workers=1) as a:
        request = await a.submit(1)
        with redis_py.Redis.from_url(a.server.url) as direct:
            direct.delete(*direct.keys("*" + request))
            direct.zrem("{s0}:timers", request)
        began = time.monotonic()
        while time.monotonic() - began < 3:
            assert (await a.client.get(f"{a.gateway.url}/v1/requests/{request}")).status_code == 404
            await asyncio.sleep(0.2)
