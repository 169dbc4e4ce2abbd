"""Health, version and metrics: no key needed, no secret in them, nothing cached.

Never here: anything about a single request.
"""

import asyncio
import time
from collections import Counter

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from dispatch.faults import STORE_FAULT
from dispatch.metrics import MOST_DEAD_LETTERS, ClusterView, exposition
from dispatch.outbox import Outbox
from gateway.context import Gateway, gateway_of
from gateway.pools import scale_view
from gateway.shapes import as_json

router = APIRouter()

PATHS = frozenset({"/livez", "/readyz", "/healthz", "/health", "/version", "/metrics"})
_ANSWER_WITHIN_S = 2.0
_NO_STORE = {"cache-control": "no-store"}


@router.get("/livez")
async def livez() -> Response:
    """The event loop turns. Never touches Redis."""
    return PlainTextResponse("ok\n", headers=_NO_STORE)


@router.get("/readyz")
@router.get("/healthz")
@router.get("/health")
async def readyz(http_request: Request) -> Response:
    """Redis answers and nothing drains. Does not need workers: requests may wait for one to be started."""
    gateway = gateway_of(http_request)
    if not gateway.watch.away:  # known already: nobody waits for a timeout
        await gateway.watch.look()
    here = not gateway.watch.away
    checks = [
        (here, f"redis ok {gateway.watch.answer_s * 1000:.1f}ms" if here else "redis does not answer"),
        (True, f"durability {gateway.settings.redis.durability}"),
        (not gateway.draining, "draining" if gateway.draining else "takes requests"),
    ]
    ready = all(ok for ok, _ in checks)
    text = "ok\n" if ready else "not ready\n"
    if not ready or "verbose" in http_request.query_params:
        text = "".join(f"[{'+' if ok else '-'}] {what}\n" for ok, what in checks) + text
    return PlainTextResponse(text, 200 if ready else 503, headers=_NO_STORE)


@router.get("/version")
async def version(http_request: Request) -> Response:
    """Which release this is."""
    gateway = gateway_of(http_request)
    return as_json(
        {
            "name": "penstock",
            "version": gateway.version,
            "gateway": gateway.feed.gateway,
            "durability": gateway.settings.redis.durability,
        },
        headers=_NO_STORE,
    )


@router.get("/metrics")
async def metrics(http_request: Request) -> Response:
    """Prometheus's text: what this gateway counted, and what Redis knows now."""
    gateway = gateway_of(http_request)
    body = exposition(gateway.metrics, await _view(gateway))
    return Response(body, headers=_NO_STORE, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _redis_answer_s(gateway: Gateway) -> float | None:
    if gateway.watch.away:  # known already: nobody waits for a timeout
        return None
    started = time.perf_counter()
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            await gateway.redis.ping()
    except (TimeoutError, STORE_FAULT):
        return None
    return time.perf_counter() - started


async def _dead_letters(gateway: Gateway) -> dict[str, int]:
    """How many are kept, by queue; of the newest ones, so that a scrape stays cheap."""
    counts: Counter[str] = Counter()
    async for letter in gateway.queue.dead_letters():
        counts[letter.model] += 1
        if counts.total() == MOST_DEAD_LETTERS:
            break
    return counts


async def _view(gateway: Gateway) -> ClusterView:
    answer_s = await _redis_answer_s(gateway)
    if answer_s is not None:
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                cards = await gateway.fleet.cards()
                queues = [await gateway.queue.stats(card.name) for card in cards]
                workers, letters = await gateway.fleet.workers(), await _dead_letters(gateway)
                now_ms, owed = await gateway.now_ms(), await Outbox(gateway.redis, gateway.queue.rules).owed()
                return ClusterView(True, answer_s, queues, workers, now_ms, letters, owed, await scale_view(gateway))
        except (TimeoutError, STORE_FAULT):
            pass
    return ClusterView(False, 0.0, (), (), 0)
