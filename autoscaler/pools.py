"""The pools of a group as the settings and people's overrides describe them. Pure.

Never here: what a policy makes of them (policy.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoscaler.policy import PoolPolicy
from autoscaler.pool_policy import policy_of
from autoscaler.seen import Seen
from dispatch.keys import check_model_name
from dispatch.scaling import Launch, LauncherName, PoolOrders, PoolOverride
from dispatch.settings import Settings
from dispatch.settings_scale import PoolSettings


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool. `model` is the name clients use. `worker` is what its launches carry."""

    name: str
    model: str
    launcher: LauncherName
    policy: PoolPolicy
    worker: Mapping[str, str] = field(default_factory=dict)
    need_bytes: int = 0
    override: PoolOverride | None = None
    removed: bool = False

    def launch(self, name: str, now_ms: int) -> Launch:
        """The order for one more worker."""
        return Launch(name, self.name, self.worker, need_bytes=self.need_bytes, ordered_at_ms=now_ms)


def pools_of(settings: Settings, overrides: Mapping[str, PoolOverride], left: Mapping[str, PoolOrders]) -> list[Pool]:
    """Every pool, by name. `left` are the last orders.

    A pool that is in no setting any more is scaled to none by the launcher that started its workers; so is, first, one that was
    given to another launcher.
    """
    asked = settings.autoscaler
    pools = [_pool(name, pool, settings, overrides.get(name)) for name, pool in sorted(asked.pools.items())]
    pools = [_emptied(left[p.name], p.launcher) if _has_moved(p, left.get(p.name)) else p for p in pools]
    pools += [
        replace(_emptied(orders, asked.launcher), removed=True)
        for name, orders in sorted(left.items())
        if name not in asked.pools
    ]
    return pools


def share_of(seen: Seen, pool: Pool, pools: Sequence[Pool]) -> Seen:
    """What one pool is to do of what its model's pools see together: by how many workers each may have, the rest to the first.

    Else each would start workers for all of it.
    """
    peers = sorted((p for p in pools if p.model == pool.model and p.policy.max > 0), key=lambda p: p.name)
    total = sum(p.policy.max for p in peers)
    if len(peers) < 2 or pool not in peers:
        return seen

    def part(count: int) -> int:
        shares = {p.name: count * p.policy.max // total for p in peers}
        shares[peers[0].name] += count - sum(shares.values())
        return shares[pool.name]

    waiting = part(seen.waiting)
    return replace(
        seen,
        waiting=waiting,
        waiting_tokens=part(seen.waiting_tokens) if waiting else 0,
        oldest_wait_s=seen.oldest_wait_s if waiting else 0.0,
        running=sum(worker.held for worker in seen.workers),
    )


def _has_moved(pool: Pool, left: PoolOrders | None) -> bool:
    return left is not None and bool(left.launches) and bool(left.launcher) and left.launcher != pool.launcher


def _emptied(left: PoolOrders, launcher: LauncherName) -> Pool:
    none = policy_of(PoolSettings(min=0, max=0, down_window_s=0), None)
    return Pool(left.pool, left.model, LauncherName(left.launcher or launcher), none)


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
