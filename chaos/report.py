"""What a run comes to: a short table from its history. Pure.

Never here: judgement (checker.py).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chaos.evidence import Evidence, tokens_of
from chaos.history import History
from chaos.invariants import Violation


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one run."""

    title: str
    outcomes: dict[str, int]
    faults: dict[str, int]
    acknowledged: int
    lost: int
    forgotten: int
    doubly_struck: int
    recoveries_s: tuple[float, ...]
    told_recoveries_s: tuple[float, ...]
    """Of workers whose launcher, or agent, tells of their exits: if that lives."""
    quarantined: int
    topology: str
    tokens: int
    prefilled_again: int
    forged: int
    violations: Sequence[Violation]
    scaled: dict[str, str]
    """More rows, of a run that scaled itself."""


def report(history: History, violations: Sequence[Violation]) -> Report:
    """The figures of a history."""
    e = Evidence(history)
    meta = history.first("meta") or {}
    title = (
        f"seed {meta.get('seed')}, {meta.get('seconds', 0) / 60:g} min, {meta.get('topology')}, {meta.get('server')}, "
        f"{meta.get('workers')} workers, {meta.get('clients')} clients, lease {meta.get('lease_s')} s"
    )
    return Report(
        title=title,
        outcomes=dict(Counter(f["state"] for f in e.finals.values()).most_common()),
        faults=dict(Counter(w.name for w in e.windows).most_common()),
        acknowledged=len(e.acknowledged),
        lost=len(e.acknowledged.keys() - e.finals.keys() - e.forgotten),
        doubly_struck=len(e.doubly_struck),
        forgotten=len(e.forgotten),
        recoveries_s=tuple(sorted(_recoveries(e, told=False))),
        told_recoveries_s=tuple(sorted(_recoveries(e, told=True))),
        quarantined=sum(1 for _ in history.of("quarantined")),
        topology=e.topology,
        tokens=sum(tokens_of(f["log"]) for f in e.finals.values()),
        prefilled_again=sum(_prefilled_again(f["log"]) for f in e.finals.values()),
        forged=sum(1 for _ in history.of("forged")),
        violations=violations,
        scaled=_scaled(e) if meta.get("scaled") else {},
    )


def as_markdown(r: Report) -> str:
    """The short table."""
    rows = [
        ("requests", f"{sum(r.outcomes.values())}: " + _counts(r.outcomes)),
        ("acknowledged; lost", f"{r.acknowledged}; {r.lost}"),
        ("... of these by a failover and their gateway's SIGKILL at once", f"{r.doubly_struck}"),
        ("forgotten by a failover after their end was seen", f"{r.forgotten}"),
        ("faults", f"{sum(r.faults.values())}: " + _counts(r.faults)),
        ("recovery after SIGKILL of a worker, by its lease", _spans(r.recoveries_s)),
        ("recovery after SIGKILL of a worker, told by its launcher or agent", _spans(r.told_recoveries_s)),
        ("workers in quarantine, sent home", f"{r.quarantined}"),
        ("tokens; visible twice", f"{r.tokens}; {sum(v.invariant in ('I3', 'I4') for v in r.violations)}"),
        ("tokens prefilled again by later attempts", f"{r.prefilled_again} ({r.prefilled_again / max(r.tokens, 1):.1%})"),
        ("writes with old papers, refused", f"{r.forged}"),
        *r.scaled.items(),
        (
            "violations",
            f"{len(r.violations)}"
            + (": " + _counts(Counter(f"{v.invariant} {v.what}" for v in r.violations)) if r.violations else ""),
        ),
    ]
    # What Sentinel is excused is said also where it is nothing.
    rows = [row for row in rows if row[1] != "0" or row[0] == "violations" or r.topology != "single"]
    return f"### {r.title}\n\n| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _scaled(e: Evidence) -> dict[str, str]:
    """What there was of leaders, decisions and launches, and how long the pool needed to come to rest."""
    h = e.history
    ended = [x for x in h.of("process") if x.get("host")]
    twice = Counter(x["role"] for x in ended if x["what"] == "start")
    actions = Counter(action for final in h.of("decisions") for _, _, action, _ in final["entries"])
    refused = sum(1 for x in h.of("forged_order") if not x["taken"])
    return {
        "leaders; decisions told": f"{len({x['epoch'] for x in h.of('leadership')})}; {_counts(dict(actions.most_common()))}",
        "launches; their processes": f"{len(twice)}; {sum(twice.values())}",
        "orders of leaders of old, refused": f"{refused}",
        "after healing, until what runs is what is ordered": ", ".join(f"{x['took_s']} s" for x in h.of("reached")),
    }


def percentile(values: Sequence[float], part: float) -> float:
    """The nearest-rank percentile of sorted values."""
    return values[min(len(values) - 1, int(part * len(values)))]


def _recoveries(e: Evidence, *, told: bool) -> list[float]:
    """From the kill to the next token at a client that was reading, over all streams of killed workers."""
    found = []
    launched = (e.history.first("meta") or {}).get("launched", ())
    for victims in e.history.of("victims"):
        if victims["cause"] != "SIGKILL" or (victims["role"] in launched or victims["role"] in e.hosts) is not told:
            continue
        for request, _, seq in victims["requests"]:
            for c in e.heard.get(request, ()):
                later = [t for t, at, _, name, _ in c["events"] if name == "chunk" and at > seq and t > victims["t"]]
                if later and c["started"] < victims["t"] and c["face"] == "native":
                    found.append((later[0] - victims["t"]) / 1000)
    return found


def _prefilled_again(log: Sequence[Any]) -> int:
    """Tokens of the answer that a later attempt had to read again before it went on."""
    again, before, attempt = 0, 0, 0
    for entry in log:
        if entry[1] != attempt and attempt and entry[2] != "end":
            again += before
        attempt = entry[1]
        before += tokens_of([entry])
    return again


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _spans(spans: Sequence[float]) -> str:
    if not spans:
        return "none seen"
    return f"p50 {percentile(spans, 0.5):.2f} s, p99 {percentile(spans, 0.99):.2f} s, of {len(spans)} streams"
