"""The pools of a group as the settings and people's overrides describe them. Pure.

Never here: what a policy makes of them (policy.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoscaler.policy import PoolPolicy
from autoscaler.pool_policy import policy_of
from dispatch.keys import check_model_name
from dispatch.scaling import Launch, PoolOrders, PoolOverride
from dispatch.settings import Launcher, PoolSettings, Settings


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool. `model` is the name clients use. `worker` is what its launches carry."""

    name: str
    model: str
    launcher: Launcher
    policy: PoolPolicy
    worker: Mapping[str, str] = field(default_factory=dict)
    need_bytes: int = 0
    override: PoolOverride | None = None

    def launch(self, name: str, now_ms: int) -> Launch:
        """The order for one more worker."""
        return Launch(name, self.name, self.worker, need_bytes=self.need_bytes, ordered_at_ms=now_ms)


def pools_of(settings: Settings, overrides: Mapping[str, PoolOverride], left: Mapping[str, PoolOrders]) -> list[Pool]:
    """Every pool, by name. `left` are the last orders: a pool that is in no setting any more is scaled to none."""
    asked = settings.autoscaler
    pools = [_pool(name, pool, settings, overrides.get(name)) for name, pool in sorted(asked.pools.items())]
    for name, orders in sorted(left.items()):
        if name not in asked.pools and orders.launches:
            none = PoolSettings(min=0, max=0, down_window_s=0)
            pools.append(Pool(name, orders.model, asked.launcher, policy_of(none, None)))
    return pools


def _pool(name: str, pool: PoolSettings, settings: Settings, override: PoolOverride | None) -> Pool:
    worker = {"model": pool.model or settings.worker.model, **pool.worker}
    served = worker.get("served_name") or (settings.worker.served_name if pool.model is None else None)
    # Always told: the line that is looked at and the name its workers answer to must be one.
    worker["served_name"] = check_model_name(served or served_name_of(worker["model"]))
    return Pool(
        name=name,
        model=worker["served_name"],
        launcher=pool.launcher or settings.autoscaler.launcher,
        policy=policy_of(pool, override),
        worker=worker,
        need_bytes=pool.need_bytes,
        override=override,
    )


def served_name_of(model: str) -> str:
    """The name clients use for a model that was given none: a folder's own, a hub id as it is."""
    return Path(model).expanduser().resolve().name if model.startswith((".", "/", "~")) else model
