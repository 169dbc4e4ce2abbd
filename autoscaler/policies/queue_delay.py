"""`queue_delay`: as many workers as it takes for nobody to wait longer than the target. Pure.

The backlog drains at the speed of those who are ready, and of those on their way from the moment they should be there. Only
what that does not drain in time asks for more; what is held now asks for those who can end it in time.
"""

import math
from collections.abc import Sequence

from autoscaler.policies.base import PoolPolicy, View, Wish


def wish(view: View, policy: PoolPolicy) -> Wish:
    """The largest of what is held, what waits, and who waits too long."""
    if not view.tokens_per_s:
        return _blindly(view, policy)
    left_tokens = sum(worker.left_tokens for worker in view.ready)
    keep = _keep(view, policy, left_tokens)
    if not view.waiting:
        busy = f"{view.seen.running} running, {left_tokens} tokens left at {view.tokens_per_s:.0f} tokens/s each"
        return Wish(keep, busy if view.seen.running else "nothing waits, nothing runs")
    speeds = [(0.0, worker.tokens_per_s or view.tokens_per_s) for worker in view.ready]
    speeds += [(at_s, view.tokens_per_s) for at_s in view.coming_in_s]
    drain_s = drain_time_s(view.waiting_tokens, speeds)
    more = _more(view, policy, speeds, drain_s)
    waits = _compared("oldest wait", view.oldest_wait_s, policy.target_s)
    drains = _compared("drain time", drain_s, policy.target_s)
    return Wish(max(keep, 1.0, view.capacity + more if more else 0.0), f"{waits}, {drains}, {view.waiting} waiting")


def drain_time_s(tokens: float, speeds: Sequence[tuple[float, float]]) -> float:
    """Until so many tokens are made by workers of (there in s, tokens/s); infinity without any."""
    if tokens <= 0:
        return 0.0
    speed, since_s, left = 0.0, 0.0, float(tokens)
    for at_s, tokens_per_s in sorted(speeds):
        made = speed * (at_s - since_s)
        if made >= left:
            break
        left, since_s = left - made, at_s
        speed += tokens_per_s
    return since_s + left / speed if speed else math.inf


def _more(view: View, policy: PoolPolicy, speeds: Sequence[tuple[float, float]], drain_s: float) -> float:
    """Workers beyond those there and on their way."""
    if drain_s <= policy.target_s and (view.oldest_wait_s <= policy.target_s or view.coming):
        return 0.0
    # A worker ordered now has the target's span to help, from the moment it is there.
    end_s = view.cold_start_s + policy.target_s
    made = sum(tokens_per_s * max(0.0, end_s - at_s) for at_s, tokens_per_s in speeds)
    missing = (view.waiting_tokens - made) / (view.tokens_per_s * policy.target_s)
    least = 0.0 if view.coming else 1.0  # too long a wait asks for one, also if it would come too late for this backlog
    return max(missing, least)


def _keep(view: View, policy: PoolPolicy, left_tokens: int) -> float:
    """Who can end all that is held or waits within the target; what runs never asks for more than there are."""
    if not view.seen.running and not view.waiting:
        return 0.0
    needed = (left_tokens + view.waiting_tokens) / (view.tokens_per_s * policy.target_s)
    return max(1.0, min(needed, float(view.capacity)))


def _blindly(view: View, policy: PoolPolicy) -> Wish:
    """No speed is known: nothing goes while something runs, and one more comes when someone waits too long."""
    needed = float(view.capacity if view.seen.running or view.waiting else 0)
    if view.waiting:
        more = view.oldest_wait_s > policy.target_s and not view.coming
        needed = max(1.0, needed + more)
    return Wish(
        needed,
        f"{_compared('oldest wait', view.oldest_wait_s, policy.target_s)}, {view.waiting} waiting, "
        f"{view.seen.running} running, speed not known",
    )


def _compared(what: str, value_s: float, target_s: float) -> str:
    if value_s == math.inf:
        return f"{what} without end"
    return f"{what} {value_s:.1f} s {'>' if value_s > target_s else '<='} target {target_s:g} s"
