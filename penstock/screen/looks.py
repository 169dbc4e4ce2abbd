"""One look at everything, and what follows from several: rates, a percentile, a line of backlogs. Pure.

Never here: asking a gateway (commands/top.py), drawing (top.py).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

_ENDINGS = ("completed", "failed", "cancelled", "expired")
_RATE_OVER_S = 10.0
_KEPT_S = 60.0

Document = Mapping[str, Any]
Histogram = Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Look:
    """What a gateway said at one moment; `at_s` is by any clock that only goes forward. `first_token`: model -> buckets."""

    at_s: float
    queues: Sequence[Document] = ()
    workers: Sequence[Document] = ()
    pools: Sequence[Document] = ()
    dead: Mapping[str, float] = field(default_factory=dict)
    first_token: Mapping[str, Histogram] = field(default_factory=dict)
    rejected: float = 0.0
    redis_s: float | None = None

    @classmethod
    def of(
        cls, at_s: float, queues: Sequence[Document], workers: Sequence[Document], pools: Sequence[Document], metrics: str
    ) -> "Look":
        """From the gateway's lists and the text of its metrics."""
        dead: dict[str, float] = {}
        buckets: defaultdict[str, dict[float, float]] = defaultdict(dict)
        rejected, redis_s = 0.0, None
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                match sample.name:
                    case "penstock_dead_letter_depth":
                        dead[sample.labels["queue"]] = sample.value
                    case "penstock_requests_rejected_total":
                        rejected += sample.value
                    case "penstock_redis_answer_seconds":
                        redis_s = sample.value
                    case "penstock_time_to_first_token_seconds_bucket":
                        buckets[sample.labels["model"]][float(sample.labels["le"])] = sample.value
        return cls(at_s, queues, workers, pools, dead, dict(buckets), rejected, redis_s)

    def ended(self, model: str) -> int:
        """How many requests of a model have ended, ever."""
        totals: Mapping[str, int] = next((queue["totals"] for queue in self.queues if queue["model"] == model), {})
        return sum(totals.get(ending, 0) for ending in _ENDINGS)


@dataclass(slots=True)
class Looks:
    """The last minute of looks."""

    kept: list[Look] = field(default_factory=list)

    def add(self, look: Look) -> None:
        """One more; those older than a minute go, but for the newest of them: a window ends there."""
        self.kept.append(look)
        while len(self.kept) > 2 and self.kept[1].at_s <= look.at_s - _KEPT_S:
            del self.kept[0]

    @property
    def last(self) -> Look:
        """The newest."""
        return self.kept[-1]

    def rate(self, model: str) -> float | None:
        """Requests of a model that end a second, over the last seconds; None: one look tells of no rate."""
        now = self.last
        before = next((look for look in self.kept if look.at_s >= now.at_s - _RATE_OVER_S), now)
        if before.at_s >= now.at_s:
            return None
        # Counters begin anew with an empty Redis.
        return max(0, now.ended(model) - before.ended(model)) / (now.at_s - before.at_s)

    def first_token_p95_s(self, model: str) -> float | None:
        """p95 of the time to the first token in the last minute, as this gateway saw it; of one look alone: since it began."""
        now = self.last.first_token.get(model, {})
        before = self.kept[0].first_token.get(model, {}) if len(self.kept) > 1 else {}
        counts = {bound: count - before.get(bound, 0.0) for bound, count in now.items()}
        return quantile(counts if all(count >= 0 for count in counts.values()) else now, 0.95)

    def backlogs(self, model: str, most: int) -> list[int]:
        """A model's backlog over the last minute, oldest first."""
        found = [next((q["backlog"] for q in look.queues if q["model"] == model), 0) for look in self.kept]
        step = max(1, -(-len(found) // most))
        return [max(found[n : n + step]) for n in range(0, len(found), step)]


def quantile(buckets: Histogram, share: float) -> float | None:
    """Of cumulative buckets by their upper bounds, linear within one, as Prometheus has it; None without any observation."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    wanted, low, under = share * total, 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if bound == float("inf"):
                return low
            inside = buckets[bound] - under
            return low + (bound - low) * ((wanted - under) / inside if inside else 1.0)
        low, under = bound, buckets[bound]
    return low
