"""Promises about charges and crashes: each has its cause on the very worker that held the attempt, and is told. Pure.

Never here: Redis, HTTP, clocks.
"""

from chaos.evidence import Evidence
from chaos.holdings import Holding, Holdings
from chaos.invariants.base import Found, Violation, faults, story

_BREAKING = ("crash", "hang")
"""Prompts that end their engine, and so charge those beside them."""


def i6_charges_are_told(e: Evidence) -> Found:
    """As many charges as attempts whose story says that they counted."""
    holdings = Holdings(e)
    for final in e.finals.values():
        charges = holdings.charges(final)
        if holdings.is_told_whole(final) and final["charged"] != len(charges):
            told = [(h.attempt, h.worker, h.why) for h in holdings.of(final)]
            yield Violation("I6", "charges and story disagree", {**story(final), "told": told})


def i9_charges_have_a_cause(e: Evidence) -> Found:
    """A charge needs a fault that struck the worker of that attempt, its way to the server, or the server, in its time."""
    holdings = Holdings(e)
    for final in e.finals.values():
        for h in holdings.charges(final):
            own = e.is_poison(final["id"])
            beside = holdings.prompts_on(h.worker, h.begun_at, h.left_at, _BREAKING)
            if not (own or beside or any(holdings.excuses(h))):
                yield Violation("I9", "a request was charged, and nothing died", _evidence(e, holdings, final, h))


def i9_crashes_have_a_cause(e: Evidence) -> Found:
    """A crash needs a prompt that broke the very engine it was in: no signal, drain or outage is one."""
    holdings = Holdings(e)
    for final in e.finals.values():
        if not final["crashes"]:
            continue
        broken = [
            h
            for h in holdings.charges(final)
            if e.tag_of(final["id"]) in _BREAKING or holdings.prompts_on(h.worker, h.begun_at, h.left_at, _BREAKING)
        ]
        # What a long story has lost cannot be held against it.
        if len(broken) < final["crashes"] and holdings.is_told_whole(final):
            told = [(h.attempt, h.worker, h.why) for h in holdings.of(final)]
            yield Violation("I9", "a request has a crash, and no prompt broke its engine", {**story(final), "told": told})


def _evidence(e: Evidence, holdings: Holdings, final: dict[str, object], h: Holding) -> dict[str, object]:
    attempt = {"attempt": h.attempt, "worker": h.worker, "role": holdings.roles.get(h.worker, ""), "why": h.why}
    return {**attempt, "began": h.begun_at, "left": h.left_at, "faults": faults(e, h.begun_at, h.left_at), **story(final)}
