"""A stream opened on one gateway goes on at another after the first is killed: bytes equal."""

import httpx2 as httpx

from tests.system.house import house
from tests.system.streams import Heard, listen

BODY = {"model": "demo", "prompt": "Tell me of the river", "max_tokens": 120}


async def test_a_killed_gateways_stream_goes_on_at_another() -> None:
    with house() as home:
        first, second = home.gateway(), home.gateway()
        home.worker("--engine", "sim", "--speed", "1")
        home.until_ready(first, 1)
        async with httpx.AsyncClient(timeout=30) as client:
            submitted = (await client.post(first.url + "/v1/requests", json=BODY)).json()
            heard = Heard()
            path = f"/v1/requests/{submitted['id']}/events"
            await listen(client, first.url + path, heard, until_chunks=5)
            assert not heard.ended
            first.kill()
            await listen(client, second.url + path, heard)
            assert heard.ended
            heard.check_dense()
            whole = Heard()
            await listen(client, second.url + path, whole)
            assert [(e.id, e.data) for e in whole.events] == [(e.id, e.data) for e in heard.events]
            again = (await client.post(second.url + "/v1/requests", json=BODY, headers={"Prefer": "wait=30"})).json()
            assert again["text"] == heard.text


async def test_a_request_never_streamed_survives_the_gateway_that_took_it() -> None:
    with house() as home:
        first, second = home.gateway(), home.gateway()
        home.worker("--engine", "sim", "--speed", "1")
        home.until_ready(first, 1)
        async with httpx.AsyncClient(timeout=30) as client:
            submitted = (await client.post(first.url + "/v1/requests", json=BODY)).json()
            first.kill()
            heard = Heard()
            await listen(client, f"{second.url}/v1/requests/{submitted['id']}/events", heard)
            assert heard.ended
            heard.check_dense()
            assert heard.events[-1].data["state"] == "completed"
