"""Promises to clients and what they see: one key one request, no error without a cause. Pure.

Never here: Redis, HTTP, clocks.
"""

from collections import defaultdict
from typing import Any

from chaos.evidence import Evidence
from chaos.holdings import ON_GATEWAYS
from chaos.invariants.base import Found, Violation, plain, story, where

_DRAIN_MS = 5_000
"""A gateway that drains or comes back from a stop breaks connections for so long after the blow."""


def i10_one_key_one_request(e: Evidence) -> Found:
    """The same idempotency key leads to one request."""
    by_key: dict[str, set[str]] = defaultdict(set)
    for answer in e.history.of("answer"):
        if answer["key"] and answer["id"]:
            by_key[answer["key"]].add(answer["id"])
    for key, ids in by_key.items():
        if len(ids) > 1:
            yield Violation("I10", "one key made several requests", {"key": key, "ids": sorted(ids)})


def i10_nobody_is_served_twice(e: Evidence) -> Found:
    """Every request in Redis was acknowledged, or comes of a submit whose answer was lost."""
    if e.topology != "single":
        return
    unanswered = []
    for answer in e.history.of("answer"):
        if not answer["id"] and (answer["status"] == 0 or answer["status"] >= 500):
            submit = e.submits[answer["n"]]
            unanswered.append((submit["t"] - 1_000, answer["t"] + 15_000))
    unanswered.sort(key=lambda span: span[1])
    for final in sorted(e.finals.values(), key=lambda f: float(f["created_at"])):
        if final["id"] in e.acknowledged or final["retry_of"]:
            continue
        match = next((s for s in unanswered if s[0] <= final["created_at"] <= s[1]), None)
        if match is None:
            yield Violation("I10", "a request that nobody sent", story(final))
        else:
            unanswered.remove(match)


def j1_errors_have_a_cause(e: Evidence) -> Found:
    """A client sees an error only with its gateway's or its request's end; never an unknown id, never a bug's 500."""
    for event in e.history.of("answer", "seen", "result", "cancel", "heard"):
        status = event["status"]
        if status == 500:
            yield Violation("J1", "a gateway answered 500", plain(event))
        elif status in (404, 410) and event["ev"] != "answer" and event["id"] not in e.doubly_struck | e.forgotten:
            yield Violation("J1", "an acknowledged request is unknown", plain(event))
        elif event["ev"] == "answer" and status in (400, 401, 404, 405, 413, 415, 422):
            yield Violation("J1", "a good submit was refused", plain(event))
    for request, connections in e.heard.items():
        final = e.finals.get(request)
        for c in connections:
            # A kept-alive connection that was just closed may break before any answer: that is HTTP, and tried again.
            if c["how"] == "broken" and c["status"] and not _gateway_struck(e, c):
                yield Violation("J1", "a stream broke and its gateway lived", {"id": request, **where(c)})
            for_nothing = c["how"] == "error" and final is not None and final["state"] == "completed"
            if for_nothing and e.topology == "single" and not _gateway_struck(e, c):
                yield Violation("J1", "an error for a request that completed", {"id": request, **where(c)})


def _gateway_struck(e: Evidence, connection: dict[str, Any]) -> bool:
    role = e.gateways.get(connection["gateway"], "")
    return any(e.overlapping(connection["started"] - _DRAIN_MS, connection["t"], ON_GATEWAYS, role))
