"""1,000 streams open at once through two gateways and four workers: all complete, dense, no error."""

import asyncio
import contextlib
import json

import httpx2 as httpx

from tests.system.house import House, Role, house, rss_mib
from tests.system.streams import Heard, listen

STREAMS = 1000
_CLIENTS = 25


async def _open_streams(client: httpx.AsyncClient, gateways: list[Role]) -> int:
    metrics = [(await client.get(gateway.url + "/metrics")).text for gateway in gateways]
    values = [line.split()[1] for text in metrics for line in text.splitlines() if line.startswith("penstock_streams_open ")]
    return sum(int(float(value)) for value in values)


def _memory(home: House) -> dict[str, int]:
    return {"server": round(rss_mib(home.server_pid)), **{role.name: round(rss_mib(role.process.pid)) for role in home.roles}}


async def test_a_thousand_streams_complete() -> None:
    with house() as home:
        gateways = [home.gateway(), home.gateway()]
        for _ in range(4):
            home.worker("--engine", "sim", "--gpu", "H100", "--slots", "256")
        home.until_ready(gateways[0], 4)
        heard = [Heard() for _ in range(STREAMS)]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with contextlib.AsyncExitStack() as stack:
            # One client with 1,000 connections spends its time searching its pool.
            clients = [await stack.enter_async_context(httpx.AsyncClient(timeout=100, limits=limits)) for _ in range(_CLIENTS)]
            looking = clients[0]
            # Held back until every stream is open, so that they truly run together.
            assert (await looking.post(gateways[0].url + "/v1/queues/demo/pause")).status_code == 200

            async def one(n: int) -> None:
                url, client = gateways[n % 2].url, clients[n % _CLIENTS]
                body = {"model": "demo", "prompt": f"Stream number {n}", "max_tokens": 32}
                reply = await client.post(url + "/v1/requests", json=body)
                assert reply.status_code == 202, reply.text
                await listen(client, f"{url}/v1/requests/{reply.json()['id']}/events", heard[n])

            streams = asyncio.gather(*(one(n) for n in range(STREAMS)))
            while not streams.done() and await _open_streams(looking, gateways) < STREAMS:
                await asyncio.wait({streams}, timeout=0.2)
            assert not streams.done(), "a stream ended while its model was paused"
            memory_open = _memory(home)
            assert (await looking.post(gateways[0].url + "/v1/queues/demo/resume")).status_code == 200
            await streams
            memory_after = _memory(home)
        for each in heard:
            each.check_dense()
            assert each.ended
            assert each.events[-1].data["state"] == "completed", each.events[-1].data
        assert len({each.text for each in heard}) > STREAMS // 2
        print("memory in MiB with 1,000 streams open:", json.dumps(memory_open))
        print("memory in MiB after the last one ended:", json.dumps(memory_after))
