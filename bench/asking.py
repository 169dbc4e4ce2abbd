"""Many requests over HTTP at once, and what the queue knows of each in the end. Never here: what is measured of them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx2 as httpx

AT_ONCE = 64


def client() -> httpx.AsyncClient:
    """One that may hold any number of streams. What stays silent for long fails: a stream is pinged four times a minute."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=AT_ONCE)
    return httpx.AsyncClient(timeout=60.0, limits=limits)


async def submit(http: httpx.AsyncClient, gateway: str, body: dict[str, Any]) -> str:
    """The id of a request that is queued now."""
    reply = await http.post(gateway + "/v1/requests", json=body)
    if reply.status_code != 202:
        raise RuntimeError(f"submit was answered {reply.status_code}: {reply.text}")
    return str(reply.json()["id"])


async def submit_all(http: httpx.AsyncClient, gateway: str, bodies: Sequence[dict[str, Any]]) -> list[str]:
    """As fast as the gateway takes them."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(body: dict[str, Any]) -> str:
        async with gate:
            return await submit(http, gateway, body)

    return list(await asyncio.gather(*(one(body) for body in bodies)))


async def records(http: httpx.AsyncClient, gateway: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    """What the queue knows of each; a request that it does not know is {}: lost."""
    gate = asyncio.Semaphore(16)

    async def one(request: str) -> dict[str, Any]:
        async with gate:
            reply = await http.get(f"{gateway}/v1/requests/{request}")
            return dict(reply.json()) if reply.status_code == 200 else {}

    return list(await asyncio.gather(*(one(request) for request in ids)))


def told(found: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How they ended."""

    def many(say: Callable[[dict[str, Any]], bool]) -> int:
        return sum(1 for record in found if say(record))

    return {
        "requests": len(found),
        "completed": many(lambda r: r.get("status") == "completed"),
        "lost": many(lambda r: not r),
        "ended otherwise": many(lambda r: bool(r) and r["status"] != "completed"),
        "charged attempts": sum(int(r.get("charged", 0)) for r in found),
        "worked by more than one attempt": many(lambda r: bool(r) and r["attempt"] > 1),
    }
