"""What must hold of a fleet that scales itself, checked on its recorded history. Pure.

One acts at a time; what is wanted is there in time; no flapping. Never here: how the history came about.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.scale_watch import Sample, Watch, reversals

TICKS_S = 3.0
_MINUTE_S = 60.0


class Kill(Protocol):
    """What is read of a kill."""

    @property
    def at(self) -> float: ...
    @property
    def kind(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def pool(self) -> str: ...


@dataclass(frozen=True)
class Reach:
    """One change or kill, and how long until the pool had as many ready workers as were wanted. None: overtaken by the next."""

    at: float
    pool: str
    why: str
    took_s: float | None


@dataclass
class Verdict:
    """`misses` are spans over the bound, `violations` what must never be; words for people."""

    cold_start_s: tuple[float, float, float] = (0.0, 0.0, 0.0)  # median, p95, worst
    bound_s: float = 0.0
    reached: list[Reach] = field(default_factory=list)
    takeovers_s: list[float] = field(default_factory=list)  # from a leader's kill until another one leads
    epochs: int = 0
    orders: int = 0
    decisions: int = 0
    reports: int = 0
    turns: dict[str, int] = field(default_factory=dict)
    desired: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """For a table."""
        took = sorted(r.took_s for r in self.reached if r.took_s is not None)
        epochs = f"{self.orders} orders, {self.decisions} decisions, {self.reports} reports of hosts"
        return [
            ("process start to ready, median / p95 / worst", _spans(self.cold_start_s, 0.0, 0.5, 1.0)),
            (
                "changes of the wanted number, and kills",
                f"{len(self.reached)}; {len(self.reached) - len(took)} overtaken by the next",
            ),
            ("wanted number ready after each, median / p95 / worst", _spans(took, 0.5, 0.95, 1.0)),
            (f"later than 3 ticks + cold start ({self.bound_s:.1f} s)", str(len(self.misses))),
            ("leaders (epochs)", str(self.epochs)),
            ("leader killed until another one leads, median / worst", _spans(self.takeovers_s, 0.5, 1.0)),
            ("looked at for an older epoch after a newer one", epochs),
            ("most turns in a minute, by pool", ", ".join(f"{pool}: {n}" for pool, n in self.turns.items())),
            ("violations", str(len(self.violations))),
        ]


def judge(watch: Watch, kills: Sequence[Kill], began: float) -> Verdict:
    """All of it, from `began` on; who leads is checked from the first moment."""
    verdict = Verdict()
    _one_acts(watch, verdict)
    starts = _cold_starts(watch)
    verdict.cold_start_s = (_at(starts, 0.5), _at(starts, 0.95), _at(starts, 1.0))
    verdict.bound_s = TICKS_S + verdict.cold_start_s[1]
    for pool in watch.pools:
        samples = [s for s in watch.of(pool) if s.at >= began]
        _in_time(samples, [k for k in kills if k.pool in ("", pool)], verdict)
        turns = reversals(samples)
        verdict.turns[pool] = max((sum(1 for t in turns if first <= t < first + _MINUTE_S) for first in turns), default=0)
        if verdict.turns[pool] > 1:
            when = ", ".join(f"{t - began:.0f}" for t in turns)
            verdict.violations.append(f"pool {pool} turned {verdict.turns[pool]} times in a minute (turns at {when} s)")
        verdict.desired[pool] = [(s.at, s.desired) for s in samples]
    verdict.takeovers_s = _takeovers(watch, kills)
    for reach in verdict.reached:
        if reach.took_s is not None and reach.took_s > verdict.bound_s:
            near = ", ".join(f"{k.kind} at {k.at - began:.1f}" for k in kills if -8 <= k.at - reach.at <= reach.took_s)
            said = f"late at {reach.at - began:.1f} s, pool {reach.pool}, {reach.why}: {reach.took_s:.1f} s"
            verdict.misses.append(f"{said}; killed near it: {near or 'nobody'}")
    return verdict


def _one_acts(watch: Watch, verdict: Verdict) -> None:
    """Epochs only grow in the log, in the orders and on every host; each belongs to one leader."""
    verdict.decisions, verdict.orders, verdict.reports = len(watch.decisions), len(watch.orders), len(watch.hosts)
    _never_falls([d.epoch for d in watch.decisions], "the decision log", verdict)
    _never_falls([orders.epoch for _, orders in watch.orders], "the orders", verdict)
    for host in {report.host for _, report in watch.hosts}:
        _never_falls([report.epoch for _, report in watch.hosts if report.host == host], f"what {host} carried out", verdict)
    _never_falls([s.epoch for s in watch.samples], "the lease", verdict)
    leaders: dict[int, set[str]] = {}
    for sample in watch.samples:
        if sample.leader:
            leaders.setdefault(sample.epoch, set()).add(sample.leader)
    verdict.epochs = len(leaders)
    verdict.violations += [f"epoch {epoch} had the leaders {sorted(who)}" for epoch, who in leaders.items() if len(who) > 1]


def _takeovers(watch: Watch, kills: Sequence[Kill]) -> list[float]:
    found = []
    for kill in kills:
        if kill.kind == "leader":
            next_at = next((s.at for s in watch.samples if s.at > kill.at and s.leader and s.leader != kill.what), None)
            found += [next_at - kill.at] if next_at is not None else []
    return sorted(found)


def _never_falls(epochs: Sequence[int], what: str, verdict: Verdict) -> None:
    falls = [(a, b) for a, b in itertools.pairwise(epochs) if b < a]
    verdict.violations += [f"epoch {b} came after {a} in {what}" for a, b in falls]


def _cold_starts(watch: Watch) -> list[float]:
    """From the start of each process, as its agent noted it, to the first look that found it ready."""
    started: dict[tuple[str, int], float] = {}
    for _, host in watch.hosts:
        for report in host.launches:
            if report.pid:
                started.setdefault((report.id, report.pid), report.since_ms / 1000)
    ready: dict[tuple[str, int], float] = {}
    for sample in watch.samples:
        for launch, (state, pid) in sample.there.items():
            if state == "ready":
                ready.setdefault((launch, pid), sample.at)
    # A start noted by an agent that took the worker over is when it was taken over.
    return sorted(at - started[key] for key, at in ready.items() if key in started and at > started[key])


def _in_time(samples: Sequence[Sample], kills: Sequence[Kill], verdict: Verdict) -> None:
    events: list[tuple[float, str]] = [(k.at, f"{k.kind} killed") for k in kills]
    for before, after in itertools.pairwise(samples):
        if after.desired != before.desired:
            events.append((after.at, f"{before.desired} -> {after.desired} wanted"))
    events.sort()
    for number, (at, why) in enumerate(events):
        over = events[number + 1][0] if number + 1 < len(events) else float("inf")
        there = next((s.at for s in samples if s.at >= at and s.ready == s.desired), float("inf"))
        took = None if there > over else there - at
        verdict.reached.append(Reach(at, samples[0].pool, why, took))


def _spans(ordered: Sequence[float], *shares: float) -> str:
    return " / ".join(f"{_at(ordered, share):.1f}" for share in shares) + " s"


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
