"""`utilisation`: as many workers as keep the GPUs' use at the target. Pure.

Memory stands in where a device tells no utilisation. A worker that holds nothing counts as idle whatever its memory says:
its weights fill it always.
"""

from autoscaler.policies.base import PoolPolicy, View, Wish
from autoscaler.seen import SeenWorker


def wish(view: View, policy: PoolPolicy) -> Wish:
    """The sum of what is in use, over the target; one for a backlog that finds nobody."""
    used = sum(_use(worker) for worker in view.ready)
    needed = used / policy.utilisation
    if view.waiting or view.seen.running:
        needed = max(1.0, needed)
    mean = used / len(view.ready) if view.ready else 0.0
    sign = ">" if mean > policy.utilisation else "<="
    return Wish(needed, f"utilisation {mean:.2f} {sign} target {policy.utilisation:g} on {len(view.ready)} ready")


def _use(worker: SeenWorker) -> float:
    if worker.utilisation is not None:
        return worker.utilisation
    return worker.memory_used or 0.0 if worker.held else 0.0
