"""Promises about endings: each request has one, it absorbs, and a cancel is final. Pure.

Never here: Redis, HTTP, clocks.
"""

import json
from collections import defaultdict
from typing import Any

from chaos.evidence import ENDED, Evidence, end_of
from chaos.holdings import ON_GATEWAYS, ON_THE_SERVER, ON_THE_WIRE
from chaos.invariants.base import Found, Violation, story

_GRACE_MS = 15_000
_LONG_DEADLINE_MS = 60_000
_GRACE_OF_READERS_MS, _LEASE_OF_READERS_MS = 5_000, 30_000
_LATE_MS = 8_000
"""The sweep, a lease of amnesty after Redis was away, and a busy machine."""


def i1_every_request_ends(e: Evidence) -> Found:
    """Every acknowledged request reaches an end by its deadline + 15 s after healing; all of Redis settles."""
    for request, answer in e.acknowledged.items():
        if request not in e.finals.keys() | e.forgotten | e.doubly_struck:
            yield Violation("I1", "an acknowledged request is lost", {"id": request, "acknowledged": answer})
    for final in e.finals.values():
        if not final["ended"]:
            yield Violation("I1", "a request never ended", story(final))
        elif final["ended_at"] > max(final["deadline_at"], e.healed_at) + _GRACE_MS:
            yield Violation("I1", "a request ended long after its deadline", story(final))
        elif final["state"] == "expired" and final["deadline_at"] - final["created_at"] >= _LONG_DEADLINE_MS:
            yield Violation("I1", "a request starved", story(final))
        elif final["state"] == "expired" and final["ended_at"] < final["deadline_at"]:
            yield Violation("I1", "a request expired before its deadline", story(final))
    for phase in e.history.of("phase"):
        if phase["what"] == "healed" and not (phase["settled"] and phase["clients_left"] == 0):
            yield Violation("I1", "not everything came to an end after healing", phase)


def i2_endings_absorb(e: Evidence) -> Found:
    """A terminal state never changes, whoever asks, and its event is the last one."""
    said: dict[str, dict[str, Any]] = defaultdict(dict)
    first: dict[str, float] = {}
    for event in e.history.of("seen", "result", "cancel"):
        if event["state"] in ENDED:
            said[event["id"]].setdefault(event["state"], event)
            first[event["id"]] = min(event["t"], first.get(event["id"], event["t"]))
    for event in e.history.of("seen"):
        if event["state"] and event["state"] not in ENDED and event["t"] - 12_500 > first.get(event["id"], float("inf")):
            yield Violation("I2", "a request that had ended goes on", event)
    for request, connections in e.heard.items():
        for connection in connections:
            for _, _, _, name, data in connection["events"]:
                if name == "end":
                    said[request].setdefault(json.loads(data)["state"], connection["client"])
    for request, states in said.items():
        final = e.finals.get(request)
        if final is not None:
            states.setdefault(final["state"], "Redis")
        if len(states) > 1:
            yield Violation("I2", "one request has several endings", {"id": request, "said": states})
    for final in e.finals.values():
        ends = [n for n, entry in enumerate(final["log"]) if entry[2] == "end"]
        if final["ended"] and final["log"] and ends != [len(final["log"]) - 1]:
            yield Violation("I2", "the end is not the one last entry of the log", {**story(final), "ends": ends})
        end = end_of(final["log"])
        if end is not None and end["state"] != final["state"]:
            yield Violation("I2", "record and log disagree about the ending", {**story(final), "end": end})


def i8_cancel_is_final(e: Evidence) -> Found:
    """A cancel that was answered is the end, unless it had ended before; afterwards nobody works on it."""
    for cancel in e.history.of("cancel"):
        final = e.finals.get(cancel["id"])
        if cancel["status"] != 200 or final is None:
            continue
        if cancel["state"] not in ENDED or final["state"] != cancel["state"]:
            yield Violation("I8", "a cancel was answered and not done", {**story(final), "cancel": cancel})
        elif e.topology == "single" and final["ended_at"] > cancel["t"] + 1_000:
            yield Violation("I8", "a cancelled request went on", {**story(final), "cancel": cancel})
    structure = e.history.first("structure")
    if structure and structure["working"]:
        yield Violation("I8", "a worker still works on what has ended", structure["working"])


def j3_orphans_end(e: Evidence) -> Found:
    """A request that only its client's connection wanted ends soon after it: the grace where its gateway lives, else
    a reader lease. What has another wish, or another reader, is none."""
    for request, connections in e.heard.items():
        final = e.finals.get(request)
        if final is None or any(c["face"] == "native" for c in connections):
            continue
        gone = [c for c in connections if c["how"] in ("left", "broken")]
        if not gone or len(gone) < len(connections):
            continue
        last = max(gone, key=lambda c: float(c["t"]))
        gateway = e.gateways.get(last["gateway"], "")
        until = last["t"] + _LEASE_OF_READERS_MS
        # A gateway that is away, or cannot reach Redis, tells nobody that its client has left: then its lease does.
        struck = [*e.overlapping(last["started"], until, ON_THE_SERVER)]
        struck += e.overlapping(last["started"], until, (*ON_GATEWAYS, *ON_THE_WIRE), gateway)
        bound = _LEASE_OF_READERS_MS + sum(w.end - w.start for w in struck) if struck else _GRACE_OF_READERS_MS
        ended_at = final["ended_at"] if final["ended"] else final["t"]
        if ended_at > last["t"] + bound + _LATE_MS:
            late = {"gone_at": last["t"], "late_s": (ended_at - last["t"]) / 1000, "gateway": gateway}
            yield Violation("J3", "an orphan worked on", {**story(final), **late})
