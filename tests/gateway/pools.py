"""An autoscaler that only writes: what a leader would say of its pools, without any decision behind it."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

from dispatch.scale_store import ScaleStore
from dispatch.scaling import Action, DecisionRecord, LaunchReport, LaunchState, Leadership, PoolStatus
from tests.gateway.helpers import MODEL


@dataclass
class Scaler:
    """Leads the group `main` and says what it is told to say."""

    store: ScaleStore
    who: str = "as-1"
    said: dict[str, PoolStatus] = field(default_factory=dict)

    async def lead(self, ttl_ms: int = 60_000) -> Leadership:
        return await self.store.lead("main", self.who, ttl_ms)

    async def say(
        self,
        pool: str = "p",
        action: Action = Action.HOLD,
        came_from: int | None = None,
        to: int = 0,
        *,
        ago_s: float = 0.0,
        log: bool = True,
        model: str = MODEL,
        reason: str = "nothing to do",
        bounds: tuple[int, int] = (0, 4),
        limits: tuple[str, ...] = (),
        raw: float | None = None,
        dry_run: bool = False,
        inputs: dict[str, Any] | None = None,
        **status: Any,
    ) -> DecisionRecord:
        leadership = await self.lead()
        assert leadership.leads
        record = DecisionRecord(
            at_ms=await self.store.now_ms() - int(ago_s * 1000),
            pool=pool,
            model=model,
            action=action,
            from_workers=to if came_from is None else came_from,
            to_workers=to,
            desired_raw=float(to) if raw is None else raw,
            bounds=bounds,
            policy="queue_delay",
            reason=reason,
            inputs=inputs or {},
            limits=limits,
            dry_run=dry_run,
            epoch=leadership.epoch,
        )
        told = PoolStatus(pool=pool, model=model, group="main", launcher="local", leader=self.who, decided=record)
        self.said[pool] = replace(told, **status)
        assert await self.store.order(leadership, "main", None, [(self.said[pool], record if log else None)], keep=1000)
        return record


def report(launch: str, state: LaunchState = LaunchState.STARTING, *, ago_s: float = 0.0, **more: Any) -> LaunchReport:
    return LaunchReport(launch, more.pop("pool", "p"), state, since_ms=int((time.time() - ago_s) * 1000), **more)
