"""How `up` learns that its parts are ready: the gateway by HTTP, the workers by their heartbeats."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx2

from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.redis_client import connect
from dispatch.reports import Heartbeat
from dispatch.settings import Settings
from dispatch.states import WorkerState
from penstock import console
from penstock.failures import Failure

_LOOK_S = 0.1
_LOOK_WHEN_READY_S = 1.0
_PROGRESS_S = 5.0


def base_url(settings: Settings) -> str:
    """Where a client on this machine finds the gateway."""
    host = settings.gateway.host
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{settings.gateway.port}"


async def until_gateway_ready(settings: Settings, timeout_s: float) -> None:
    """Return when /readyz says 200. Raises Failure."""
    url = base_url(settings)
    deadline = time.monotonic() + timeout_s
    last = "it does not listen"
    async with httpx2.AsyncClient(base_url=url, timeout=5.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                response = await client.get("/readyz")
                if response.status_code == 200:
                    return
                last = f"/readyz says {response.status_code}: {response.text[:200]}"
            except httpx2.TransportError as error:
                last = str(error) or type(error).__name__
            await asyncio.sleep(_LOOK_S)
    raise Failure(f"The gateway at {url} is not ready after {timeout_s:g} s", last, "Look at its log")


@dataclass(slots=True)
class WorkerNews:
    """What our workers' heartbeats have told so far, by name."""

    ready: set[str] = field(default_factory=set)
    errors: dict[str, str] = field(default_factory=dict)


async def announce_workers(url: str, pids: Callable[[], Mapping[str, int]], news: WorkerNews) -> None:
    """Say when each of our workers gets on with loading, is ready, or reports an error. `pids`: the living, by name."""
    redis = connect(url, max_connections=2)
    fleet = Fleet(redis)
    told: dict[int, str] = {}
    told_at: dict[int, float] = {}
    try:
        while True:
            names = {pid: name for name, pid in pids().items()}
            try:
                beats = [beat for beat in await fleet.workers() if beat.pid in names]
            except (STORE_FAULT, OSError, PenstockError):
                beats = []
            for beat in beats:
                line = _line(beat)
                if beat.state is WorkerState.READY:
                    news.ready.add(names[beat.pid])
                if beat.error:
                    news.errors[names[beat.pid]] = beat.error
                in_haste = beat.state is not WorkerState.LOADING or time.monotonic() - told_at.get(beat.pid, 0) > _PROGRESS_S
                if line and line != told.get(beat.pid) and in_haste:
                    told[beat.pid], told_at[beat.pid] = line, time.monotonic()
                    console.event(f"{names[beat.pid]} {line}")
            ready = sum(1 for beat in beats if beat.state is WorkerState.READY)
            await asyncio.sleep(_LOOK_WHEN_READY_S if ready and ready == len(beats) else _LOOK_S)
    finally:
        await redis.aclose()


def _line(beat: Heartbeat) -> str:
    if beat.error:
        return f"reports: {beat.error}"
    if beat.state is WorkerState.READY:
        on = f" on {beat.gpu.name}" if beat.gpu else ""
        return f"is ready: {beat.model}{on}, room for {beat.limit_tokens:,} tokens"
    if beat.state is WorkerState.LOADING and beat.progress:
        return f"is loading: {beat.progress}"
    return ""
