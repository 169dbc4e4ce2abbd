"""1,000 concurrent streams through two gateways and four workers: all complete, dense, no error."""

import asyncio
import contextlib

import httpx2 as httpx

from tests.system.house import house, rss_mib
from tests.system.streams import Heard, listen

STREAMS = 1000


async def test_a_thousand_streams_complete() -> None:
    with house() as home:
        gateways = [home.gateway(), home.gateway()]
        workers = [home.worker("--engine", "sim", "--gpu", "H100", "--speed", "1", "--slots", "256") for _ in range(4)]
        home.until_ready(gateways[0], 4)
        heard = [Heard() for _ in range(STREAMS)]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with contextlib.AsyncExitStack() as stack:
            # One client with 1,000 connections spends its time searching its pool.
            clients = [await stack.enter_async_context(httpx.AsyncClient(timeout=100, limits=limits)) for _ in range(25)]

            async def one(n: int) -> None:
                url, client = gateways[n % 2].url, clients[n % 25]
                body = {"model": "demo", "prompt": f"Stream number {n}", "max_tokens": 32}
                reply = await client.post(url + "/v1/requests", json=body)
                assert reply.status_code == 202, reply.text
                await listen(client, f"{url}/v1/requests/{reply.json()['id']}/events", heard[n])

            await asyncio.gather(*(one(n) for n in range(STREAMS)))
            memory = {role.name: rss_mib(role.process.pid) for role in (*gateways, *workers)}
            memory["server"] = rss_mib(home.server_pid)
        for each in heard:
            each.check_dense()
            assert each.ended
            assert each.events[-1].data["state"] == "completed", each.events[-1].data
        assert len({each.text for each in heard}) > STREAMS // 2
        print("memory MiB:", {name: round(mib) for name, mib in memory.items()})
