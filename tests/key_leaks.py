"""The key-leak check: after a test each key left has a TTL, belongs to an unfinished request, or is permanent by design."""

import re

from redis.asyncio import Redis

# One a model or one a Penstock; never one a request, worker or gateway.
PERMANENT = re.compile(
    r"\{s\d+\}:(queue:.+:(high|normal|low)(:front|:alone)?|sizes:.+|others:.+|parked:.+|stats:.+|leases:.+|timers|requests|expiries|paused|outbox)|models|workers|model:.+|tokenizer:.+"
    r"|\{scale\}:(leader:.+|orders:.+|status|log|counts|overrides|hosts)"
)


async def leaking_keys(redis: Redis) -> list[str]:
    """The names of keys that have no TTL and are not permanent by design."""
    leaks = []
    async for raw in redis.scan_iter(count=1000):
        name = raw.decode()
        if await redis.pttl(name) == -1 and not PERMANENT.fullmatch(name):
            leaks.append(name)
    return sorted(leaks)
