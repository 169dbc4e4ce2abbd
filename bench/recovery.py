"""From the SIGKILL of a worker to the next token at its client, with the default lease and nobody who sees the exit.

`python -m bench.recovery [--rounds N]`: one gateway, two `sim` workers, one stream a round. A launcher that sees the exit
(`penstock up`) is faster by far; its figure is in tests/worker and docs/decisions/0009.
"""

import argparse
import asyncio
import time

import httpx2 as httpx

from tests.system.house import House, Role, house
from tests.system.streams import Heard, events, listen

_BODY = {"model": "demo", "prompt": "Tell me of the river", "max_tokens": 4000, "ignore_eos": True}


async def _round(home: House, gateway: Role, client: httpx.AsyncClient) -> float:
    request = (await client.post(gateway.url + "/v1/requests", json=_BODY)).json()["id"]
    heard = Heard()
    url = f"{gateway.url}/v1/requests/{request}"
    await listen(client, url + "/events", heard, until_chunks=5)
    serving = (await client.get(url)).json()["worker"]
    pid = next(w["pid"] for w in home.get(gateway, "/v1/workers")["data"] if w["id"] == serving)
    next(role for role in home.roles if role.process.pid == pid).kill()
    killed_at = time.monotonic()
    async with asyncio.timeout(60):
        # What the dead one had written and we had not read comes first: only what a later attempt wrote counts.
        while (story := (await client.get(url)).json())["attempt"] < 2:  # noqa: ASYNC110 - the API has no event for it
            await asyncio.sleep(0.01)
        async for event in events(client, url + "/events", heard.last_id):
            if event.name == "chunk" and event.seq > story["seq"]:
                break
    recovered_s = time.monotonic() - killed_at
    await client.delete(url)
    return recovered_s


async def _measure(rounds: int) -> list[float]:
    with house() as home:
        gateway = home.gateway()
        flags = ("--engine", "sim", "--speed", "1")
        for _ in range(2):
            home.worker(*flags)
        home.until_ready(gateway, 2)
        spans = []
        async with httpx.AsyncClient(timeout=60) as client:
            for _ in range(rounds):
                spans.append(await _round(home, gateway, client))
                home.roles[:] = [role for role in home.roles if role.process.poll() is None]
                home.worker(*flags)
                home.until_ready(gateway, 2)
        return sorted(spans)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    spans = asyncio.run(_measure(parser.parse_args().rounds))
    print(f"SIGKILL of a worker to the next token: p50 {spans[len(spans) // 2]:.2f} s, largest {spans[-1]:.2f} s of {len(spans)}")


if __name__ == "__main__":
    main()
