"""What can scale a simulated fleet: Penstock's own `decide`, and the rules it is measured against. Pure, but for their memory.

Never here: what comes of it (scaled.py).
"""

import math
from collections import deque

from autoscaler.policy import History, PoolPolicy, decide
from autoscaler.seen import Phase, Seen
from dispatch.scaling import Action


class Decided:
    """The same `decide` that scales real workers."""

    def __init__(self, policy: PoolPolicy) -> None:
        self._policy = policy
        self._history = History()

    def desired(self, seen: Seen) -> tuple[int, str]:
        decision, self._history = decide(seen, self._policy, self._history)
        return decision.desired, decision.reason if decision.action in (Action.UP, Action.DOWN) else ""


class FixedRule:
    """ceil(backlog / N): up at once, down only when nothing changed for the cooldown."""

    def __init__(self, each: float, cooldown_s: float, most: int, *, least: int = 0, running: bool = False) -> None:
        self._each, self._cooldown_s, self._least, self._most, self._running = each, cooldown_s, least, most, running
        self._now, self._changed_at_s = least, -math.inf

    def desired(self, seen: Seen) -> tuple[int, str]:
        metric = seen.waiting + (seen.running if self._running else 0)
        wish = min(max(math.ceil(metric / self._each), self._least), self._most)
        if wish > self._now or (wish < self._now and seen.at_s - self._changed_at_s >= self._cooldown_s):
            self._now, self._changed_at_s = wish, seen.at_s
            return wish, f"ceil({metric} / {self._each:g})"
        return self._now, ""


class Keda:
    """KEDA on a HorizontalPodAutoscaler, with their defaults.

    From 0 to 1 KEDA looks every 30 s, back to 0 after 300 s without a metric. Between, the HPA looks every 15 s: ceil(metric /
    target), not within 10 % of it, up by 4 or to the double in 15 s, down to the peak of 300 s.
    """

    POLL_S, SYNC_S, COOLDOWN_S, WINDOW_S, TOLERANCE, STEP = 30.0, 15.0, 300.0, 300.0, 0.1, 4

    def __init__(self, target: float, most: int, *, least: int = 0, running: bool = False) -> None:
        self._target, self._least, self._most, self._running = target, least, most, running
        self._now, self._polled_s, self._synced_s, self._active_s = least, -math.inf, -math.inf, -math.inf
        self._wishes: deque[tuple[float, int]] = deque()

    def desired(self, seen: Seen) -> tuple[int, str]:
        metric, before = seen.waiting + (seen.running if self._running else 0), self._now
        if seen.at_s - self._polled_s >= self.POLL_S:
            self._polled_s = seen.at_s
            if metric:
                self._active_s = seen.at_s
                self._now = max(self._now, 1)
            elif seen.at_s - self._active_s >= self.COOLDOWN_S:
                self._now = self._least
        if self._now and seen.at_s - self._synced_s >= self.SYNC_S:
            self._synced_s = seen.at_s
            self._sync(seen, metric)
        return self._now, f"{metric} / {self._target:g}" if self._now != before else ""

    def _sync(self, seen: Seen, metric: int) -> None:
        """The HPA's turn; it never goes to 0."""
        there = seen.count(Phase.READY, Phase.STARTING)
        ratio = metric / (self._target * there) if there else math.inf
        wish = self._now if abs(ratio - 1) <= self.TOLERANCE else math.ceil(metric / self._target)
        wish = min(max(wish, self._least, 1), self._most)
        self._wishes.append((seen.at_s, wish))
        while self._wishes[0][0] <= seen.at_s - self.WINDOW_S:
            self._wishes.popleft()
        stable = max(wish, min(self._now, max(n for _, n in self._wishes)))
        self._now = min(stable, max(2 * self._now, self._now + self.STEP))
