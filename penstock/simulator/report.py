"""What came of a run, in figures: one row a strategy. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from penstock.simulator.fleet import Member
from penstock.simulator.state import Outcome

HEAD = ("strategy", "e2e mean", "e2e p95", "e2e p99", "ttft p50", "ttft p95", "ttft p99", "tokens/s", "goodput", "moved")


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request was promised: its first token, and each further one on average, within these spans."""

    ttft_s: float = 2.0
    tpot_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy's figures. `share`: each worker's part of the tokens worked; `goodput`: of the requests within the SLO."""

    strategy: str
    e2e_mean_s: float
    e2e_p95_s: float
    e2e_p99_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    tokens_per_s: float
    share: Mapping[str, float]
    goodput: float
    moved: int

    def document(self) -> dict[str, Any]:
        """As printed for programs."""
        return {f.name: _rounded(getattr(self, f.name)) for f in fields(self) if f.name != "moved"}

    def cells(self) -> list[str]:
        """As printed for eyes, under HEAD."""
        spans = (self.e2e_mean_s, self.e2e_p95_s, self.e2e_p99_s, self.ttft_p50_s, self.ttft_p95_s, self.ttft_p99_s)
        return [
            self.strategy,
            *(f"{s:.3f}s" for s in spans),
            f"{self.tokens_per_s:,.0f}",
            f"{self.goodput:.1%}",
            str(self.moved),
        ]


def row_of(strategy: str, outcome: Outcome, fleet: Sequence[Member], slo: Slo) -> Row:
    """The figures of one run."""
    jobs = outcome.jobs
    e2e = sorted(job.ended_at - job.arrival.at_s for job in jobs)
    ttft = sorted(job.first_at - job.arrival.at_s for job in jobs)
    good = sum(
        1
        for job in jobs
        if job.first_at - job.arrival.at_s <= slo.ttft_s
        and job.ended_at - job.first_at <= slo.tpot_s * (job.arrival.answer_tokens - 1)
    )
    worked = [0] * len(fleet)
    for job in jobs:
        worked[job.worker] += job.arrival.prompt_tokens + job.arrival.answer_tokens
    span_s = outcome.ended_at_s - jobs[0].arrival.at_s
    return Row(
        strategy=strategy,
        e2e_mean_s=sum(e2e) / len(e2e),
        e2e_p95_s=quantile(e2e, 0.95),
        e2e_p99_s=quantile(e2e, 0.99),
        ttft_p50_s=quantile(ttft, 0.50),
        ttft_p95_s=quantile(ttft, 0.95),
        ttft_p99_s=quantile(ttft, 0.99),
        tokens_per_s=sum(job.arrival.answer_tokens for job in jobs) / span_s,
        share={member.name: part / sum(worked) for member, part in zip(fleet, worked, strict=True)},
        goodput=good / len(jobs),
        moved=outcome.moved,
    )


def quantile(ordered: Sequence[float], q: float) -> float:
    """The value that a part q of them does not pass, between neighbours in proportion."""
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return value
