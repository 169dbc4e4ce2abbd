"""Promises about attempts: the fence holds, they are bounded, and each charge and crash has its cause. Pure.

Never here: Redis, HTTP, clocks.
"""

from collections import defaultdict

from chaos.evidence import Evidence, end_of
from chaos.invariants.base import Found, Violation, story

_LOOK_MS = 1_000
"""How late the harness sees new orders."""


def i5_the_fence_holds(e: Evidence) -> Found:
    """Whoever writes with the papers of an attempt that is over is refused."""
    for forged in e.history.of("forged"):
        may_repeat = forged["what"] in ("release", "retry", "finish")
        if forged["answer"] != "fenced" and not (may_repeat and forged["answer"] == "dup"):
            yield Violation("I5", "a write with old papers was taken", forged)


def i6_attempts_are_bounded(e: Evidence) -> Found:
    """No more charged attempts than allowed, one charge an attempt at most, and none for the attempt that completed."""
    for final in e.finals.values():
        if final["charged"] > min(final["max_attempts"], final["attempt"]):
            yield Violation("I6", "more charges than attempts", story(final))
        if final["state"] == "completed" and final["charged"] >= final["attempt"] > 0:
            yield Violation("I6", "the attempt that completed was charged", story(final))


def i6_deaths_are_charged(e: Evidence) -> Found:
    """An attempt whose worker was killed counts: else a poison request runs for ever."""
    if e.topology != "single":
        return
    deaths: dict[str, set[int]] = defaultdict(set)
    for victims in e.history.of("victims"):
        if victims["cause"] != "SIGKILL":
            continue
        # A release that was on its way when its worker was killed charges nothing.
        if any(e.overlapping(victims["t"] - 10_000, victims["t"], ("drain-worker", "rolling-restart"), victims["role"])):
            continue
        # So is one of a worker that its agent ends, because it is ordered no more: a look at the orders later it is known.
        if -_LOOK_MS <= victims["t"] - e.dropped.get(victims["role"], float("inf")) <= 10_000:
            continue
        for request, attempt, _ in victims["requests"]:
            deaths[request].add(attempt)
    for request, attempts in deaths.items():
        final = e.finals.get(request)
        if final is not None and final["charged"] < sum(a < final["attempt"] for a in attempts):
            yield Violation("I6", "an attempt that died was not charged", {**story(final), "died": sorted(attempts)})


def i6_failures_have_a_cause(e: Evidence) -> Found:
    """Only poison, or as many charged attempts as allowed, makes a request fail."""
    for request, final in e.finals.items():
        if final["state"] != "failed" or e.is_poison(request):
            continue
        if final["charged"] < final["max_attempts"]:
            yield Violation("I6", "an innocent request failed", {**story(final), "end": end_of(final["log"])})
