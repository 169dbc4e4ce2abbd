"""`queue_delay`: as many workers as it takes for nobody to wait longer than the target. Pure.

What is to be done is the backlog and a part of what is held, which is half done on average. Those who are ready work it off at
once, those on their way from the moment they should be there. More are ordered only for what would be left when a worker
ordered now has been there for nearly half the target: what is done without it needs no start that costs its cold start.
"""

import math
from collections.abc import Sequence

from autoscaler.policies.base import PoolPolicy, View, Wish

# Least GPU-seconds at an equal p95 wait in bench/autoscaler.py; 0.5 and 0.5 cost 2 to 4 % more there.
_HELD_SHARE = 0.4
_HELP_SHARE = 0.45


def wish(view: View, policy: PoolPolicy) -> Wish:
    """Who can end all there is within the target; beyond those who are there, only who would come in time to help."""
    if not view.waiting and not view.seen.running:
        return Wish(0.0, "nothing waits, nothing runs")
    if not view.tokens_per_s:
        return _blindly(view, policy)
    held = sum(worker.left_tokens for worker in view.ready)
    tokens = view.waiting_tokens + _HELD_SHARE * held
    needed = tokens / (view.tokens_per_s * policy.target_s)
    workers = max(1.0, min(needed, float(view.capacity)))
    speeds = [(0.0, view.tokens_per_s)] * len(view.ready) + [(at_s, view.tokens_per_s) for at_s in view.coming_in_s]
    if view.waiting:
        workers = max(workers, view.capacity + _more(view, policy, speeds, tokens))
    drains = _compared("drain time", drain_time_s(tokens, speeds), policy.target_s)
    if not view.waiting:
        return Wish(workers, f"nothing waits, {view.seen.running} running, {drains}")
    waits = _compared("oldest wait", view.oldest_wait_s, policy.target_s)
    return Wish(workers, f"{waits}, {drains}, {view.waiting} waiting, {view.tokens_per_s:.0f} tokens/s each")


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


def _more(view: View, policy: PoolPolicy, speeds: Sequence[tuple[float, float]], tokens: float) -> float:
    """Workers beyond those there and on their way; below 0 they would do with fewer."""
    help_s = _HELP_SHARE * policy.target_s
    end_s = view.cold_start_s + help_s
    if not view.cold_start_s:  # not learned, or nothing: then the target itself is the horizon
        help_s = end_s = policy.target_s
    made = sum(tokens_per_s * max(0.0, end_s - at_s) for at_s, tokens_per_s in speeds)
    missing = (tokens - made) / (view.tokens_per_s * help_s)
    if view.oldest_wait_s > policy.target_s and not view.coming:
        # It waits already: whoever would do it within the target is worth a start, even if not there in time.
        missing = max(missing, tokens / (view.tokens_per_s * policy.target_s) - view.capacity)
    return missing if missing > 0 else -math.inf


def _blindly(view: View, policy: PoolPolicy) -> Wish:
    """No speed is known: nothing goes while something runs, and requests are counted instead of their cost."""
    busy = view.waiting + view.seen.running
    needed = max(float(view.capacity), busy / policy.requests_per_worker)
    return Wish(
        needed,
        f"{_compared('oldest wait', view.oldest_wait_s, policy.target_s)}, {view.waiting} waiting, "
        f"{view.seen.running} running, speed not known: {policy.requests_per_worker:g} requests a worker",
    )


def _compared(what: str, value_s: float, target_s: float) -> str:
    if value_s == math.inf:
        return f"{what} without end"
    return f"{what} {value_s:.1f} s {'>' if value_s > target_s else '<='} target {target_s:g} s"
