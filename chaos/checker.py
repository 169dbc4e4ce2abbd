"""The checker: each promise as one function from a history to its violations, with the evidence. Pure, offline.

The numbers are those of the invariants in the design. A new one is one function and its name in `INVARIANTS`.
Never here: Redis, HTTP, clocks.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from chaos.evidence import ENDED, Evidence, end_of, text_of, tokens_of
from chaos.history import History

_GRACE_MS = 15_000
_LONG_DEADLINE_MS = 60_000
_MISSED_SAMPLES = 4
_OVERTAKEN_MS = 5_000
_CHARGING = (
    "kill-worker",
    "kill-engine",
    "stop-worker",
    "stop-fleet",
    "partition",
    "one-way",
    "refuse",
    "drop-replies",
    "delay",
    "cut",
)
_CHARGING_SERVER = ("outage", "kill-master", "stop-master", "failover", "kill-replica")
_CRASHING = ("kill-worker", "kill-engine", "rolling-restart", "drain-worker")
_GATEWAY_ENDS = ("kill-gateway", "drain-gateway", "rolling-restart", "stop-gateway")


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept."""

    invariant: str
    what: str
    evidence: dict[str, Any] = field(default_factory=dict)


Found = Iterator[Violation]


def i1_every_request_ends(e: Evidence) -> Found:
    """Every acknowledged request reaches an end by its deadline + 15 s after healing; all of Redis settles."""
    for request, answer in e.acknowledged.items():
        if request not in e.finals.keys() | e.forgotten | e.doubly_struck:
            yield Violation("I1", "an acknowledged request is lost", {"id": request, "acknowledged": answer})
    for final in e.finals.values():
        if not final["ended"]:
            yield Violation("I1", "a request never ended", _story(final))
        elif final["ended_at"] > max(final["deadline_at"], e.healed_at) + _GRACE_MS:
            yield Violation("I1", "a request ended long after its deadline", _story(final))
        elif final["state"] == "expired" and final["deadline_at"] - final["created_at"] >= _LONG_DEADLINE_MS:
            yield Violation("I1", "a request starved", _story(final))
        elif final["state"] == "expired" and final["ended_at"] < final["deadline_at"]:
            yield Violation("I1", "a request expired before its deadline", _story(final))
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
            yield Violation("I2", "the end is not the one last entry of the log", {**_story(final), "ends": ends})
        end = end_of(final["log"])
        if end is not None and end["state"] != final["state"]:
            yield Violation("I2", "record and log disagree about the ending", {**_story(final), "end": end})


def i3_logs_are_chained(e: Evidence) -> Found:
    """Event ids are contiguous, attempts never fall, the hash chain is valid."""
    for final in e.finals.values():
        chain, attempt = hashlib.sha1(final["id"].encode(), usedforsecurity=False).hexdigest()[:16], 0
        for n, (seq, by, _, data, stored) in enumerate(final["log"], 1):
            chain = hashlib.sha1((chain + data).encode(), usedforsecurity=False).hexdigest()[:16]
            if seq != n or by < attempt or chain != stored:
                yield Violation("I3", "a log is not one chain", {**_story(final), "at": n, "seq": seq, "attempt": by})
                break
            attempt = by
        if final["log"] and (final["seq"], final["chain"]) != (final["log"][-1][0], final["log"][-1][4]):
            yield Violation("I3", "record and log disagree about the last entry", _story(final))
        if attempt > final["attempt"]:
            yield Violation("I3", "the log knows an attempt the record does not", _story(final))


def i3_clients_heard_the_log(e: Evidence) -> Found:
    """What each client received, over all gateways, is the log: nothing missing, nothing twice, nothing else."""
    for request, connections in e.heard.items():
        final = e.finals.get(request)
        if final is None:
            continue
        log = {seq: (chain, kind, data) for seq, _, kind, data, chain in final["log"]}
        for c in (c for c in connections if c["face"] == "native"):
            seq = int((c["from_id"] or "0").partition("-")[0])
            for _, at, chain, name, data in c["events"]:
                if name == "rewind":
                    seq = 0
                if name not in ("chunk", "note", "end"):
                    continue
                seq += 1
                where = {"id": request, "client": c["client"], "gateway": c["gateway"], "from": c["from_id"], "expected": seq}
                if at != seq:
                    yield Violation("I3", "a client's stream has a gap or a double", {**where, "came": at})
                    break
                if e.topology == "single" and log.get(at) != (chain, name, data):
                    yield Violation(
                        "I3", "a client heard what the log does not say", {**where, "heard": data, "log": log.get(at)}
                    )
                    break
            if c["how"] == "status" and c["status"] == 204 and seq < final["seq"]:
                yield Violation("I3", "a client was told that its stream is over, and it is not", {"id": request, **_where(c)})


def i4_texts_are_right(e: Evidence) -> Found:
    """Text = f(prompt): whole when completed, else a beginning of it; usage counts the tokens that are there."""
    for request, final in e.finals.items():
        reference = e.reference_of(request)
        if reference is None:
            continue
        text = text_of(final["log"])
        if final["state"] == "completed":
            end = end_of(final["log"]) or {}
            counted = (end.get("usage") or {}).get("completion_tokens")
            if text != reference["text"]:
                yield Violation("I4", "a completed text is wrong", {**_story(final), **_difference(text, reference["text"])})
            elif counted != reference["tokens"] or tokens_of(final["log"]) != reference["tokens"]:
                counts = {"usage": counted, "in_log": tokens_of(final["log"]), "right": reference["tokens"]}
                yield Violation("I4", "tokens are counted wrongly", {**_story(final), **counts})
            elif end.get("finish_reason") != reference["finish_reason"]:
                yield Violation("I4", "a wrong finish reason", {**_story(final), "end": end})
        elif not reference["text"].startswith(text):
            yield Violation("I4", "an unfinished text is wrong", {**_story(final), **_difference(text, reference["text"])})
        for c in (c for c in e.heard.get(request, ()) if c["face"] != "native"):
            heard = "".join(data for _, _, _, _, data in c["events"])
            right = heard == reference["text"] if c["how"] == "end" else reference["text"].startswith(heard)
            if not right:
                yield Violation(
                    "I4",
                    "an OpenAI client got a wrong text",
                    {"id": request, **_where(c), **_difference(heard, reference["text"])},
                )
    for result in e.history.of("result"):
        reference = e.reference_of(result["id"])
        if reference is not None and result["state"] == "completed" and result["text"] != reference["text"]:
            yield Violation(
                "I4", "a result's text is wrong", {"id": result["id"], **_difference(result["text"], reference["text"])}
            )


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
            yield Violation("I6", "more charges than attempts", _story(final))
        if final["state"] == "completed" and final["charged"] >= final["attempt"] > 0:
            yield Violation("I6", "the attempt that completed was charged", _story(final))


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
        for request, attempt, _ in victims["requests"]:
            deaths[request].add(attempt)
    for request, attempts in deaths.items():
        final = e.finals.get(request)
        if final is not None and final["charged"] < sum(a < final["attempt"] for a in attempts):
            yield Violation("I6", "an attempt that died was not charged", {**_story(final), "died": sorted(attempts)})


def i6_failures_have_a_cause(e: Evidence) -> Found:
    """Only poison, or as many charged attempts as allowed, makes a request fail."""
    for request, final in e.finals.items():
        if final["state"] != "failed" or e.is_poison(request):
            continue
        if request not in e.acknowledged and e.prompted(final["created_at"], final["ended_at"]):
            continue
        if final["charged"] < final["max_attempts"]:
            yield Violation("I6", "an innocent request failed", {**_story(final), "end": end_of(final["log"])})


def i7_memory_is_kept(e: Evidence) -> Found:
    """No worker is granted more than it offered to hold."""
    for sample in e.history.of("sample"):
        if sample["held"] > sample["slots"] or (sample["used"] > sample["limit"] and sample["held"] > 1):
            yield Violation("I7", "a worker holds more than it offered", sample)


def i7_two_lines_meet(e: Evidence) -> Found:
    """No request waits beside a parked pull that has room for it."""
    in_a_row: dict[str, int] = defaultdict(int)
    for sample in e.history.of("sample"):
        in_a_row[sample["worker"]] = in_a_row[sample["worker"]] + 1 if sample["missed"] else 0
        if in_a_row[sample["worker"]] == _MISSED_SAMPLES:
            yield Violation("I7", "requests wait beside a parked pull with room", sample)


def i8_cancel_is_final(e: Evidence) -> Found:
    """A cancel that was answered is the end, unless it had ended before; afterwards nobody works on it."""
    for cancel in e.history.of("cancel"):
        final = e.finals.get(cancel["id"])
        if cancel["status"] != 200 or final is None:
            continue
        if cancel["state"] not in ENDED or final["state"] != cancel["state"]:
            yield Violation("I8", "a cancel was answered and not done", {**_story(final), "cancel": cancel})
        elif e.topology == "single" and final["ended_at"] > cancel["t"] + 1_000:
            yield Violation("I8", "a cancelled request went on", {**_story(final), "cancel": cancel})
    structure = e.history.first("structure")
    if structure and structure["working"]:
        yield Violation("I8", "a worker still works on what has ended", structure["working"])


def i9_charges_have_a_cause(e: Evidence) -> Found:
    """A drain, a rolling restart, a gateway's death or a Redis that was away charges nobody and is no crash."""
    after_ms = 3 * e.lease_ms + 4_000
    for final in e.finals.values():
        span = (final["created_at"] - after_ms, final["ended_at"])
        if e.prompted(*span):
            continue
        if final["charged"] and not any(e.overlapping(*span, (*_CHARGING, *_CHARGING_SERVER))):
            yield Violation("I9", "a request was charged, and nothing died", {**_story(final), "faults": _faults(e, *span)})
        if final["crashes"] and not any(e.overlapping(*span, _CRASHING)):
            yield Violation("I9", "a request has a crash, and nothing crashed", {**_story(final), "faults": _faults(e, *span)})


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
            yield Violation("I10", "a request that nobody sent", _story(final))
        else:
            unanswered.remove(match)


def i11_nothing_is_left(e: Evidence) -> Found:
    """In the end: no timer, lease, waiting entry or held request, and no key without a TTL that is not permanent."""
    structure = e.history.first("structure")
    if structure is None:
        yield Violation("I11", "Redis could not be read in the end", {"phases": list(e.history.of("phase"))})
        return
    for name in ("timers", "lines", "leaks"):
        if structure[name]:
            yield Violation("I11", f"{name} are left", {name: structure[name]})
    for name in ("leases", "held"):
        if any(structure[name].values()):
            yield Violation("I11", f"{name} are left", {name: structure[name]})


def i13_no_rewind(e: Evidence) -> Found:
    """Nobody is told to rewind where Redis cannot have lost anything."""
    if e.topology != "single":
        return
    for request, connections in e.heard.items():
        for c in connections:
            if any(name == "rewind" for _, _, _, name, _ in c["events"]):
                yield Violation("I13", "a rewind without a rollback", {"id": request, **_where(c)})


def i14_first_come_first_served(e: Evidence) -> Found:
    """Within a model and priority nobody smaller is overtaken for long (requests of one attempt only)."""
    lines: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for final in e.finals.values():
        if final["attempt"] == 1 and final["begun_at"]:
            lines[final["model"], final["priority"]].append(final)
    for finals in lines.values():
        finals.sort(key=lambda f: f["begun_at"])
        # From the last begun to the first: whoever came before us and began after us was overtaken.
        for n, late in enumerate(finals):
            for early in finals[max(0, n - 40) : n]:
                overtaken = early["created_at"] - late["created_at"] > _OVERTAKEN_MS and early["cost"] >= late["cost"]
                if overtaken and early["begun_at"] < late["begun_at"] - 1_000:
                    yield Violation("I14", "a request was overtaken for long", {"late": _story(late), "early": _story(early)})
                    break


def j1_errors_have_a_cause(e: Evidence) -> Found:
    """A client sees an error only with its gateway's or its request's end; never an unknown id, never a bug's 500."""
    for event in e.history.of("answer", "seen", "result", "cancel", "heard"):
        status = event["status"]
        if status == 500:
            yield Violation("J1", "a gateway answered 500", _plain(event))
        elif status in (404, 410) and event["ev"] != "answer" and event["id"] not in e.doubly_struck | e.forgotten:
            yield Violation("J1", "an acknowledged request is unknown", _plain(event))
        elif event["ev"] == "answer" and status in (400, 401, 404, 405, 413, 415, 422):
            yield Violation("J1", "a good submit was refused", _plain(event))
    for request, connections in e.heard.items():
        final = e.finals.get(request)
        for c in connections:
            # A kept-alive connection that was just closed may break before any answer: that is HTTP, and tried again.
            if c["how"] == "broken" and c["status"] and not _gateway_struck(e, c):
                yield Violation("J1", "a stream broke and its gateway lived", {"id": request, **_where(c)})
            for_nothing = c["how"] == "error" and final is not None and final["state"] == "completed"
            if for_nothing and e.topology == "single" and not _gateway_struck(e, c):
                yield Violation("J1", "an error for a request that completed", {"id": request, **_where(c)})


def j2_processes_stay(e: Evidence) -> Found:
    """No process of ours ends unless it is told to, its engine was killed or poisoned, or it found no Redis at its start."""
    started: dict[int, float] = {}
    for event in e.history.of("process"):
        if event["what"] == "start":
            started[event["pid"]] = event["t"]
        elif not event["told"] and event["t"] - started.get(event["pid"], 0.0) > 12_000:
            engine = any(e.overlapping(event["t"] - 20_000, event["t"], ("kill-engine",), event["role"]))
            if not engine and not e.prompted(event["t"] - 60_000, event["t"]):
                yield Violation("J2", "a process ended by itself", event)


INVARIANTS: tuple[Callable[[Evidence], Found], ...] = (
    i1_every_request_ends,
    i2_endings_absorb,
    i3_logs_are_chained,
    i3_clients_heard_the_log,
    i4_texts_are_right,
    i5_the_fence_holds,
    i6_attempts_are_bounded,
    i6_deaths_are_charged,
    i6_failures_have_a_cause,
    i7_memory_is_kept,
    i7_two_lines_meet,
    i8_cancel_is_final,
    i9_charges_have_a_cause,
    i10_one_key_one_request,
    i10_nobody_is_served_twice,
    i11_nothing_is_left,
    i13_no_rewind,
    i14_first_come_first_served,
    j1_errors_have_a_cause,
    j2_processes_stay,
)


def check(history: History) -> list[Violation]:
    """All violations of all promises."""
    evidence = Evidence(history)
    return [violation for invariant in INVARIANTS for violation in invariant(evidence)]


def _gateway_struck(e: Evidence, connection: dict[str, Any]) -> bool:
    role = e.gateways.get(connection["gateway"], "")
    return any(e.overlapping(connection["started"] - 30_000, connection["t"], _GATEWAY_ENDS, role))


def _story(final: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in final.items() if k not in ("log", "ev", "t")}


def _where(connection: dict[str, Any]) -> dict[str, Any]:
    events = connection["events"]
    return {**{k: v for k, v in connection.items() if k not in ("events", "ev")}, "events": len(events), "last": events[-1:]}


def _plain(event: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in event.items() if k != "events"}


def _faults(e: Evidence, start: float, end: float) -> list[str]:
    return [f"{w.name} {w.target}" for w in e.overlapping(start, end)]


def _difference(came: str, right: str) -> dict[str, Any]:
    at = next((n for n, (a, b) in enumerate(zip(came, right, strict=False)) if a != b), min(len(came), len(right)))
    span = slice(max(0, at - 20), at + 20)
    return {"lengths": (len(came), len(right)), "differ_at": at, "came": came[span], "right": right[span]}
