"""Whether a Redis can be used: reachable, new enough, never evicting, with scripting. Asked once at the start of each role.

Never here: finding or starting a server (penstock/server.py).
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError

from dispatch.configuration import mask_url
from dispatch.durability import check_durability
from dispatch.errors import PenstockError
from dispatch.redis_client import connect
from dispatch.settings import Durability

LEAST_REDIS = (7, 0)
LEAST_VALKEY = (7, 2)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself. `persistence`: aof, rdb or memory."""

    product: str
    version: str
    maxmemory_policy: str
    persistence: str
    used_memory_bytes: int
    maxmemory_bytes: int
    round_trip_ms: float


async def check_server(redis: Redis) -> ServerFacts:
    """What the server is. Raises PenstockError("redis_unavailable") or ("redis_unsuitable") with what to do."""
    facts = await read_facts(redis)
    refuse_unsuitable(facts)
    try:
        await redis.eval("return 1", 0)  # type: ignore[no-untyped-call, misc, unused-ignore]
    except ResponseError as error:
        raise PenstockError(
            "redis_unsuitable",
            f"{facts.product} {facts.version} does not run scripts ({error}); every step of the queue is one.",
            hint="Allow FCALL, FUNCTION LOAD, EVAL and EVALSHA for this user, or use a server with Lua scripting.",
        ) from error
    return facts


async def read_facts(redis: Redis) -> ServerFacts:
    """INFO, or PenstockError("redis_unavailable")."""
    where = _where(redis)
    try:
        started = time.perf_counter()
        await redis.ping()
        round_trip_ms = (time.perf_counter() - started) * 1000
        info: Mapping[str, Any] = {}
        for section in ("server", "memory", "persistence"):
            info = {**info, **await redis.info(section)}
    except AuthenticationError as error:
        raise PenstockError(
            "redis_unavailable", f"Redis at {where} refused the password ({error}).", hint="Check redis.url and redis.password."
        ) from error
    except BusyLoadingError as error:
        raise PenstockError(
            "redis_unavailable", f"Redis at {where} is still loading its data.", hint="Wait until it has loaded."
        ) from error
    except (TimeoutError, RedisError, OSError) as error:
        why = str(error).rstrip(".") or type(error).__name__
        raise PenstockError(
            "redis_unavailable",
            f"Redis at {where} does not answer: {mask_url(why)}.",
            hint="Start it, or name another one with --redis URL (or PENSTOCK_REDIS__URL).",
        ) from error
    valkey = info.get("valkey_version")
    return ServerFacts(
        product="Valkey" if valkey else "Redis",
        version=str(valkey or info.get("redis_version", "0")),
        maxmemory_policy=str(info.get("maxmemory_policy", "noeviction")),
        persistence="aof" if info.get("aof_enabled") else "memory",
        used_memory_bytes=int(info.get("used_memory", 0)),
        maxmemory_bytes=int(info.get("maxmemory", 0)),
        round_trip_ms=round_trip_ms,
    )


def refuse_unsuitable(facts: ServerFacts) -> None:
    """Pure: raise if a server of these facts would lose or corrupt requests."""
    least = LEAST_VALKEY if facts.product == "Valkey" else LEAST_REDIS
    if version_of(facts.version) < least:
        raise PenstockError(
            "redis_unsuitable",
            f"{facts.product} {facts.version} is too old: Penstock needs Redis 7.0 or Valkey 7.2, or newer.",
            hint="Upgrade it, or leave redis.url empty and `penstock up` starts a server of its own.",
        )
    if facts.maxmemory_policy != "noeviction":
        raise PenstockError(
            "redis_unsuitable",
            f"Redis has maxmemory-policy {facts.maxmemory_policy}: at its memory limit it would throw requests away in silence.",
            hint="redis-cli CONFIG SET maxmemory-policy noeviction, and the same line in its configuration file.",
        )


async def wait_until_ready(url: str, timeout_s: float, durability: Durability = Durability.MEMORY) -> ServerFacts:
    """Wait for a server that is starting (or loading its data), then check it, and that it can promise `durability`."""
    redis = connect(url, max_connections=2)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                facts = await check_server(redis)
                await check_durability(redis, durability)
                return facts
            except PenstockError as error:
                if error.code != "redis_unavailable" or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.02)
    finally:
        await redis.aclose()


async def check_url(url: str, durability: Durability = Durability.MEMORY) -> ServerFacts:
    """Connect, check, close."""
    return await wait_until_ready(url, timeout_s=0, durability=durability)


def version_of(text: str) -> tuple[int, int]:
    """(major, minor) of a version text; (0, 0) if it is none."""
    parts = ([*text.split("."), "0", "0"])[:2]
    return (int(parts[0]), int(parts[1])) if all(part.isdigit() for part in parts) else (0, 0)


def _where(redis: Redis) -> str:
    options = redis.connection_pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
