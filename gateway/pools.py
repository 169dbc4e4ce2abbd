"""Reading what the autoscaler wrote of its pools, for pages and metrics. Bounded, however long its log is.

Never here: what is made of it (scaled.py).
"""

import asyncio
from collections.abc import Mapping, Sequence

from dispatch.errors import PenstockError
from dispatch.metrics_scale import ScaleView
from dispatch.scaling import Action, DecisionRecord, Leadership, PoolStatus
from gateway.context import Gateway
from gateway.pool_views import PoolView

_LOOKED_BACK = 300


async def read_pools(gateway: Gateway, *, model: str | None = None) -> list[PoolView]:
    """Every pool the autoscaler told of, by name; only those of `model`, if it is given."""
    statuses = [s for s in (await gateway.scale.statuses()).values() if model in (None, s.model)]
    if not statuses:
        return []
    overrides, leaders, workers, now_ms = await asyncio.gather(
        gateway.scale.overrides(), _leaders(gateway, statuses), gateway.fleet.workers(), gateway.now_ms()
    )
    return [
        PoolView(
            status=status,
            override=overrides.get(status.pool),
            leader=leaders[status.group],
            workers=tuple(beat for beat in workers if beat.pool == status.pool),
            now_ms=now_ms,
        )
        for status in statuses
    ]


async def read_pool(gateway: Gateway, pool: str) -> PoolView:
    """One. Raises PenstockError("pool_not_found") naming those there are."""
    views = await read_pools(gateway)
    for view in views:
        if view.status.pool == pool:
            return view
    names = ", ".join(view.status.pool for view in views[:20])
    hint = f"Pools here: {names}." if names else "No autoscaler has told of a pool yet: start one."
    raise PenstockError("pool_not_found", f"There is no pool {pool[:64]!r}.", hint=hint, param="pool")


async def last_changes(gateway: Gateway, pools: Sequence[str]) -> Mapping[str, DecisionRecord]:
    """The newest decision of each pool that was more than to hold; of the newest entries of the log, so that it stays cheap."""
    found: dict[str, DecisionRecord] = {}
    looked = 0
    async for _, record in gateway.scale.decisions():
        if record.pool in pools and record.pool not in found and record.action is not Action.HOLD:
            found[record.pool] = record
        looked += 1
        if looked == _LOOKED_BACK or len(found) == len(pools):
            break
    return found


async def scale_view(gateway: Gateway) -> ScaleView:
    """What the metrics show."""
    statuses = tuple((await gateway.scale.statuses()).values())
    return ScaleView(statuses, await _leaders(gateway, statuses), await gateway.scale.counts() if statuses else {})


async def _leaders(gateway: Gateway, statuses: Sequence[PoolStatus]) -> dict[str, Leadership]:
    groups = sorted({status.group for status in statuses})
    return dict(zip(groups, await asyncio.gather(*(gateway.scale.leader(group) for group in groups)), strict=True))
