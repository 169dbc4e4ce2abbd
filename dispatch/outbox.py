"""The outbox: endings that somebody is to be told of. What is owed stays in it until it was delivered or is given up.

An ending puts its webhook in by its own script; whoever looks takes what is due, and it is offered again unless a try is
noted. So no crash between any two steps loses one. Never here: HTTP, what a webhook says (webhooks.py), how often is tried.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from dispatch.batching import Batched
from dispatch.keys import ShardKeys
from dispatch.rules import QueueRules
from dispatch.scripts import Script, compose_all
from dispatch.webhooks import Webhook, WebhookState, webhook_from

_MOST_AT_ONCE = 100


class Verdict(StrEnum):
    """What one try leads to."""

    DELIVERED = "delivered"
    AGAIN = "again"
    GIVEN_UP = "given_up"
    LATER = "later"  # the try was put off, and does not count


@dataclass(frozen=True, slots=True)
class Due:
    """A request whose webhook is to be tried now, for the `tried` + 1st time."""

    request: str
    tried: int


class Outbox:
    """The outbox of one shard. `now` replaces Redis's clock for tests (ms)."""

    def __init__(
        self,
        redis: Redis,
        rules: QueueRules,
        *,
        shard: str = "s0",
        now: Callable[[], int] | None = None,
        scripts: Mapping[str, Script] | None = None,
    ) -> None:
        self._batched = Batched(redis)
        self._keys = ShardKeys(shard)
        self._now = now
        self._scripts = scripts or compose_all(rules)

    async def _run(self, name: str, **values: str | int | float | bytes) -> Any:
        now = self._now() if self._now else ""
        return await self._scripts[name](self._batched, self._keys.timers, (), {**values, "now": now})

    async def take(self, *, again_ms: int, limit: int = _MOST_AT_ONCE) -> list[Due]:
        """What is due, oldest first. Nobody else is offered it for `again_ms`, or until a try is noted."""
        taken = await self._run("take_owed", limit=limit, again_ms=again_ms)
        return [Due(taken[n].decode(), taken[n + 1]) for n in range(0, len(taken), 2)]

    async def note(
        self, request: str, number: int, verdict: Verdict, *, status: int = 0, error: str = "", took_ms: int = 0, wait_ms: int = 0
    ) -> WebhookState | None:
        """What came of the try with that number. Where it stands then; None if it is no longer kept. May be repeated."""
        state = await self._run(
            "note_try",
            id=request,
            number=number,
            status=status,
            error=error,
            took_ms=took_ms,
            verdict=verdict,
            wait_ms=wait_ms,
        )
        return None if state is None else WebhookState(state.decode())

    async def webhook(self, request: str) -> Webhook | None:
        """What is owed, or was, for a request's ending; None if nothing, or nothing yet."""
        key = self._keys.webhook(request)
        fields: Mapping[bytes, bytes] = await self._batched.execute("HGETALL", key)
        return webhook_from(request, fields, key) if fields else None

    async def owed(self) -> int:
        """How many are owed."""
        return int(await self._batched.execute("ZCARD", self._keys.outbox))
