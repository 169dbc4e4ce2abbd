"""`latency`: more workers while the p95 of the time to the first token is over its target. Pure.

A p95 over the last minute still tells of the time before the last change, so one change waits for the next such minute.
"""

from autoscaler.policies.base import PoolPolicy, View, Wish

_SETTLED_S = 60.0
_MOST_GROWTH = 2.0
_EASY = 0.5
"""Below this share of the target fewer workers would do."""


def wish(view: View, policy: PoolPolicy) -> Wish:
    """In proportion, at most twice as many; fewer only when it is at less than half of its target."""
    p95_s, there = view.seen.ttft_p95_s, view.capacity
    busy = view.waiting or view.seen.running
    if p95_s is None or not busy:
        return Wish(max(1.0, there) if busy else 0.0, "no time to first token yet" if busy else "nothing waits, nothing runs")
    ratio = p95_s / policy.ttft_s
    reason = f"p95 time to first token {p95_s:.2f} s {'>' if ratio > 1 else '<='} target {policy.ttft_s:g} s"
    if ratio > 1 and not view.coming and view.since_up_s >= _SETTLED_S + view.cold_start_s:
        return Wish(max(1.0, there * min(ratio, _MOST_GROWTH)), reason)
    if ratio < _EASY:
        return Wish(max(1.0, there * ratio / _EASY), reason)
    return Wish(max(1.0, there), reason)
