"""What every handler of one gateway process shares: the queue, the fleet, the feed, caches and counters.

Never here: HTTP.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.keys import check_model_name
from dispatch.metrics import GatewayMetrics
from dispatch.queue import Queue
from dispatch.reports import ModelCard
from dispatch.scale_store import ScaleStore
from dispatch.settings import Settings
from gateway.lengths import KnownLengths
from gateway.promises import Promises
from gateway.streaming import Feed
from gateway.tokenizing import Tokenizers
from gateway.watching import Watch

_CARD_KEPT_S = 1.0
_LOADING_AGAIN_S = 2


class Cards:
    """Model cards, looked up at most once a second each."""

    def __init__(self, fleet: Fleet, scale: ScaleStore) -> None:
        self._fleet = fleet
        self._scale = scale
        self._kept: dict[str, tuple[float, ModelCard]] = {}

    async def get(self, model: str) -> ModelCard:
        """The card. Raises PenstockError("model_not_found") naming the models there are.

        "model_loading": a pool has that model, and no worker of it ever ran: the first one brings the card.
        """
        kept = self._kept.get(model)
        if kept is not None and time.monotonic() - kept[0] < _CARD_KEPT_S:
            return kept[1]
        if kept is not None:
            self._kept[model] = (time.monotonic(), kept[1])  # while one looks, the others use what was known
        card = await self._fleet.card(check_model_name(model))
        if card is None:
            self._kept.pop(model, None)
            await self._refuse_if_awaited(model)
            names = [c.name for c in await self._fleet.cards()]
            known = f"Models here: {', '.join(names[:20])}." if names else "No worker has published a model yet: start one."
            raise PenstockError(
                "model_not_found", f"There is no model {model!r}.", hint=known, param="model", extra={"models": names[:100]}
            )
        self._kept[model] = (time.monotonic(), card)
        return card

    async def _refuse_if_awaited(self, model: str) -> None:
        pools = [status for status in (await self._scale.statuses()).values() if status.model == model]
        if any(status.decided.bounds[1] > 0 for status in pools):
            raise PenstockError(
                "model_loading",
                f"The first worker of {model!r} has not been ready yet, so nothing is known of the model.",
                hint="Try again in a moment; `penstock scale explain` tells how far it is.",
                param="model",
                retry_after_s=_LOADING_AGAIN_S,
            )


@dataclass(slots=True)
class Gateway:
    """One gateway process. `draining`: it takes nothing new."""

    settings: Settings
    redis: Any
    queue: Queue
    fleet: Fleet
    feed: Feed
    watch: Watch
    promises: Promises
    cards: Cards
    tokenizers: Tokenizers
    lengths: KnownLengths
    scale: ScaleStore
    metrics: GatewayMetrics
    version: str
    draining: bool = False
    started_at: float = field(default_factory=time.monotonic)

    async def now_ms(self) -> int:
        """Redis's clock: the only one that moments in Redis are written by."""
        seconds, micros = await self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def refuse_if_draining(self) -> None:
        """Raises PenstockError("draining") when nothing new is taken."""
        if self.draining:
            raise PenstockError(
                "draining",
                "This gateway is shutting down and takes no new requests.",
                hint="Ask again: another one answers.",
                retry_after_s=1,
            )


def gateway_of(http_request: Request) -> Gateway:
    """The gateway a handler runs in."""
    gateway: Gateway = http_request.app.state.gateway
    return gateway


def headers_of(http_request: Request) -> dict[str, str]:
    """The request's headers, of each name the first: the framework's own mapping looks through all of them for each."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(http_request.scope["headers"])}


def address_of(http_request: Request) -> str:
    """The client's address as the server knows it: it believes X-Forwarded-For of a proxy on this machine alone."""
    return http_request.client.host if http_request.client else ""


async def store_present(http_request: Request) -> None:
    """A dependency of every page that needs Redis. Raises PenstockError("redis_unavailable") at once while it is away."""
    gateway_of(http_request).watch.refuse_if_away()
