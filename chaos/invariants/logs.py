"""Promises about what was said: logs are chained, clients heard them, texts are right, nobody is told to rewind. Pure.

Never here: Redis, HTTP, clocks.
"""

import hashlib

from chaos.evidence import Evidence, end_of, text_of, tokens_of
from chaos.invariants.base import Found, Violation, difference, story, where


def i3_logs_are_chained(e: Evidence) -> Found:
    """Event ids are contiguous, attempts never fall, the hash chain is valid."""
    for final in e.finals.values():
        chain, attempt = final["id"][-16:], 0
        for n, (seq, by, _, data, stored) in enumerate(final["log"], 1):
            chain = hashlib.sha1((chain + data).encode(), usedforsecurity=False).hexdigest()[:16]
            if seq != n or by < attempt or chain != stored:
                yield Violation("I3", "a log is not one chain", {**story(final), "at": n, "seq": seq, "attempt": by})
                break
            attempt = by
        if final["log"] and (final["seq"], final["chain"]) != (final["log"][-1][0], final["log"][-1][4]):
            yield Violation("I3", "record and log disagree about the last entry", story(final))
        if attempt > final["attempt"]:
            yield Violation("I3", "the log knows an attempt the record does not", story(final))


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
                here = {"id": request, "client": c["client"], "gateway": c["gateway"], "from": c["from_id"], "expected": seq}
                if at != seq:
                    yield Violation("I3", "a client's stream has a gap or a double", {**here, "came": at})
                    break
                if e.topology == "single" and log.get(at) != (chain, name, data):
                    yield Violation("I3", "a client heard what the log does not say", {**here, "heard": data, "log": log.get(at)})
                    break
            if c["how"] == "status" and c["status"] == 204 and seq < final["seq"]:
                yield Violation("I3", "a client was told that its stream is over, and it is not", {"id": request, **where(c)})


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
                yield Violation("I4", "a completed text is wrong", {**story(final), **difference(text, reference["text"])})
            elif counted != reference["tokens"] or tokens_of(final["log"]) != reference["tokens"]:
                counts = {"usage": counted, "in_log": tokens_of(final["log"]), "right": reference["tokens"]}
                yield Violation("I4", "tokens are counted wrongly", {**story(final), **counts})
            elif end.get("finish_reason") != reference["finish_reason"]:
                yield Violation("I4", "a wrong finish reason", {**story(final), "end": end})
        elif not reference["text"].startswith(text):
            yield Violation("I4", "an unfinished text is wrong", {**story(final), **difference(text, reference["text"])})
        for c in (c for c in e.heard.get(request, ()) if c["face"] != "native"):
            heard = "".join(data for _, _, _, _, data in c["events"])
            right = heard == reference["text"] if c["how"] == "end" else reference["text"].startswith(heard)
            if not right:
                yield Violation(
                    "I4",
                    "an OpenAI client got a wrong text",
                    {"id": request, **where(c), **difference(heard, reference["text"])},
                )
    for result in e.history.of("result"):
        reference = e.reference_of(result["id"])
        if reference is not None and result["state"] == "completed" and result["text"] != reference["text"]:
            yield Violation(
                "I4", "a result's text is wrong", {"id": result["id"], **difference(result["text"], reference["text"])}
            )


def i13_no_rewind(e: Evidence) -> Found:
    """Nobody is told to rewind where Redis cannot have lost anything."""
    if e.topology != "single":
        return
    for request, connections in e.heard.items():
        for c in connections:
            if any(name == "rewind" for _, _, _, name, _ in c["events"]):
                yield Violation("I13", "a rewind without a rollback", {"id": request, **where(c)})
