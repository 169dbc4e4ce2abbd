"""Why a request is where it is, in codes, numbers and plain words: what GET /v1/requests/{id}/explain answers. Pure.

Never here: reading any of it (dispatch/explaining.py), judging it (dispatch/reasons.py), its words (explained_words.py).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dispatch.explaining import Surroundings
from dispatch.meetings import Meeting, Met, meetings_from
from dispatch.reasons import NEVER, Impossible, Judged, Needs, Reason, impossible, judge_all, outlook
from dispatch.records import RequestRecord
from dispatch.rules import QueueRules
from dispatch.scores import is_pull
from dispatch.states import RequestState, shown
from gateway.explained_words import kept_words, met_words, reason_words, span
from gateway.scaled import Help
from gateway.shapes import links
from gateway.submitting import End

MOST_WORKERS = 50
"""So many workers are told one by one; the others are counted by their reason."""


def waiting_document(record: RequestRecord, around: Surroundings, rules: QueueRules, autoscaler: Help) -> dict[str, Any]:
    """A request that waits in line: for what, behind whom, why no worker takes it, and what the autoscaler does for it."""
    pulls = is_pull(record.strategy)
    patient = pulls and around.now_ms - record.queued_at_ms < rules.patience_ms
    needs = Needs(record.id, record.cost_tokens, record.crashes > 0, around.paused, record.prompt_tokens, pulls, patient)
    judged = sorted(judge_all(needs, around.workers, rules.worker_seen_ms), key=_nearest)
    told, rest = judged[:MOST_WORKERS], judged[MOST_WORKERS:]
    free = [each.worker for each in judged if not _is_closed(each)]
    best = max(free, key=lambda w: (w.free_tokens, w.id), default=None)
    never = _impossible_document(_for_ever(impossible(judged), needs, autoscaler), needs, judged, record.model)
    keeper = next((each.worker for each in judged if record.id in (each.worker.pin, each.worker.alone)), None)
    document = _head(record, around.now_ms) | {
        "position": around.position,
        "backlog": around.backlog,
        "ahead": {"requests": around.ahead.requests, "tokens": around.ahead.tokens},
        "paused": around.paused,
        "suspect": needs.alone,
        "kept_by": keeper and {"worker": keeper.id, "free_tokens": keeper.free_tokens, "words": kept_words(needs, keeper)},
        "best_free": best and {"worker": best.id, "free_tokens": best.free_tokens, "limit_tokens": best.limit_tokens},
        "workers": [_worker_document(needs, each) for each in told],
        "others": dict(Counter(_code(each) for each in rest)),
        "impossible": never,
        "expected_start": _start_document(needs, judged, around, never, autoscaler),
        "autoscaler": autoscaler.documents(),
    }
    return document | {"summary": _waiting_summary(record, document, autoscaler)}


def held_document(record: RequestRecord, now_ms: int) -> dict[str, Any]:
    """A request under a lease: who has it, since when, and why this worker."""
    begun = record.attempt_begun_at_ms if record.state is RequestState.RUNNING else 0
    since = begun or record.granted_at_ms
    grants = [met for met in meetings_from(record.meetings) if met.worker == record.worker and met.met in _GRANTS]
    why = grants[-1] if grants else None
    doing = "has been at it" if begun else "was granted it and has not begun yet, for"
    summary = f"{record.worker} {doing} {span(now_ms - since)} (attempt {record.attempt})"
    run = {
        "worker": record.worker,
        "attempt": record.attempt,
        "granted_at_ms": record.granted_at_ms or None,
        "begun_at_ms": begun or None,
        "strategy": why.strategy if why and why.strategy else None,
        "score": why.score if why else None,
        "compared": why.compared if why and why.met is Met.GRANTED else None,
        "words": met_words(why) if why else "why this worker is no longer kept",
    }
    return _head(record, now_ms) | {"run": run, "summary": f"{summary}; {run['words']}"}


def backoff_document(record: RequestRecord, now_ms: int) -> dict[str, Any]:
    """A request that waits to be tried again."""
    left_s = max(0.0, (record.not_before_ms - now_ms) / 1000)
    last = record.story[-1].why if record.story else "an error"
    words = f"it is tried again in {left_s:.1f} s, after attempt {record.attempt} ended: {last}"
    retry = {"not_before_ms": record.not_before_ms, "seconds": round(left_s, 3), "charged": record.charged, "why": last}
    start = {"seconds": round(left_s, 3), "basis": "then it meets the parked pulls again; it starts at once if one has room"}
    return _head(record, now_ms) | {"retry": retry, "expected_start": start, "summary": words}


def ended_document(record: RequestRecord, end: End | None, now_ms: int) -> dict[str, Any]:
    """A request that has ended."""
    error = (end.error if end else None) or {}
    words = f"it was {record.state}" if record.state is RequestState.CANCELLED else f"it {_ENDED.get(record.state, record.state)}"
    ended = {
        "state": record.state,
        "at_ms": record.ended_at_ms,
        "worker": record.worker or None,
        "code": error.get("code"),
        "message": error.get("message"),
    }
    summary = f"{words} {span(now_ms - record.ended_at_ms)} ago, at attempt {record.attempt}"
    return _head(record, now_ms) | {"ended": ended, "summary": f"{summary}: {error['message']}" if error else summary}


_ENDED = {RequestState.COMPLETED: "was completed"}
_GRANTS = (Met.GRANTED, Met.GRANTED_FROM_LINE)
_CLOSED = NEVER - {Reason.TOO_SMALL} | {Reason.LOADING, Reason.NO_PULL, Reason.UNSEEN, Reason.NOT_ACCEPTING}


def _head(record: RequestRecord, now_ms: int) -> dict[str, Any]:
    status, phase = shown(record.state)
    return {
        "id": record.id,
        "object": "explanation",
        "status": status,
        "phase": phase,
        "model": record.model,
        "age_ms": max(0, now_ms - record.created_at_ms),
        "needs": {
            "cost_tokens": record.cost_tokens,
            "prompt_tokens": record.prompt_tokens or None,
            "answer_tokens": record.cost_tokens - record.prompt_tokens if record.prompt_tokens else None,
            "priority": record.priority,
            "strategy": record.strategy or None,
            "session": bool(record.session),
        },
        "meetings": [_meeting_document(met) for met in meetings_from(record.meetings)],
        "links": links(record.id),
    }


# ---- workers


def _nearest(judged: Judged) -> tuple[bool, bool, int, str]:
    return judged.never, _is_closed(judged), -judged.worker.free_tokens, judged.worker.id


def _is_closed(judged: Judged) -> bool:
    return any(reason in _CLOSED for reason in judged.reasons)


def _code(judged: Judged) -> str:
    return judged.reasons[0].value if judged.reasons else "fits"


def _worker_document(needs: Needs, judged: Judged) -> dict[str, Any]:
    w = judged.worker
    return {
        "id": w.id,
        "state": w.state,
        "code": _code(judged),
        "codes": list(judged.reasons),
        "words": "; ".join(reason_words(reason, needs, w) for reason in judged.reasons) or "has room: it is about to take it",
        "limit_tokens": w.limit_tokens,
        "used_tokens": w.used_tokens,
        "free_tokens": w.free_tokens,
        "held": w.held,
        "slots": w.slots,
        "unseen_s": None if w.unseen_ms is None else round(w.unseen_ms / 1000, 1),
    }


# ---- what may come of it


def _for_ever(why: Impossible | None, needs: Needs, autoscaler: Help) -> Impossible | None:
    """What is impossible with the workers there are is not so for ever where the autoscaler may start another one."""
    if why is not None and autoscaler.may_come(needs.cost_tokens, larger=why is Impossible.TOO_LARGE):
        return None
    return why


def _impossible_document(why: Impossible | None, needs: Needs, judged: Sequence[Judged], model: str) -> dict[str, Any] | None:
    if why is None:
        return None
    most = max((each.worker.limit_tokens or 0 for each in judged if Reason.GONE not in each.reasons), default=0)
    match why:
        case Impossible.NO_WORKERS:
            words = f"no worker of {model!r} is there"
            to_do = f"start a worker of {model!r} that holds at least {needs.cost_tokens:,} tokens"
        case Impossible.TOO_LARGE:
            words = f"it needs {needs.cost_tokens:,} tokens, and the largest worker of {model!r} that is there holds {most:,}"
            to_do = f"start a worker that holds at least {needs.cost_tokens:,} tokens, or ask for less"
        case Impossible.NONE_STAYS:
            words = f"no worker of {model!r} that could hold it takes anything new"
            to_do = f"start another worker that holds at least {needs.cost_tokens:,} tokens"
    return {"code": why, "words": words, "to_do": to_do}


def _start_document(
    needs: Needs, judged: Sequence[Judged], around: Surroundings, never: dict[str, Any] | None, autoscaler: Help
) -> dict[str, float | str | None]:
    if never:
        return {"seconds": None, "basis": never["words"]}
    if around.paused:
        return {"seconds": None, "basis": "the queue is paused: it starts after somebody resumes it"}
    found = outlook(needs, judged, around.ahead)
    if found is None:
        counts = ", ".join(f"{n} {code}" for code, n in sorted(Counter(_code(each) for each in judged).items()))
        nobody = f"no worker takes requests now ({counts or 'none is there'})"
        ready_s = autoscaler.first_ready_s()
        if not ready_s:  # none is on its way, nobody knows how long that takes here, or it takes longer than usual
            return {"seconds": None, "basis": f"{nobody}; {autoscaler.words()}" if autoscaler.pools else nobody}
        ahead = f", and {around.ahead.tokens:,} tokens wait ahead" if around.ahead.tokens else ""
        basis = f"at the earliest, as the next worker needs about {ready_s:.1f} s more by what starts took here{ahead}"
        return {"seconds": round(ready_s, 1), "basis": basis}
    if not found.seconds:
        return {"seconds": 0.0, "basis": f"{found.worker} has room: it is about to take it"}
    basis = (
        f"{around.ahead.tokens:,} tokens wait ahead, and {found.lacks_tokens:,} more have to come free on {found.worker}; "
        f"{found.workers} working at {found.speed:,.0f} tokens/s as measured; answers that end early bring it forward"
    )
    return {"seconds": round(found.seconds, 1), "basis": basis}


def _waiting_summary(record: RequestRecord, document: dict[str, Any], autoscaler: Help) -> str:
    place = f"position {document['position']} of {document['backlog']}" if document["position"] else "its place is far back"
    parts = [f"waiting {span(document['age_ms'])} for {record.model!r} ({record.priority}), {place}"]
    if document["impossible"]:
        known = [f"it cannot start: {document['impossible']['words']}", *([autoscaler.words()] if autoscaler.pools else [])]
        return "; ".join((*parts, *known))
    best = document["best_free"]
    needed = f"it needs {record.cost_tokens:,} tokens"
    parts.append(f"{needed}; most free now: {best['free_tokens']:,} ({best['worker']})" if best else needed)
    if document["paused"]:
        parts.append("the queue is paused")
    seconds = document["expected_start"]["seconds"]
    if autoscaler.pools and seconds != 0:
        parts.append(autoscaler.words())
    if seconds is not None:
        parts.append(f"expected start in about {seconds:.1f} s" if seconds else "about to start")
    return "; ".join(parts)


# ---- meetings


def _meeting_document(meeting: Meeting) -> dict[str, Any]:
    document: dict[str, Any] = {"at_ms": meeting.at_ms, "code": meeting.met, "words": met_words(meeting)}
    if meeting.worker:
        document["worker"] = meeting.worker
    if meeting.free_tokens is not None:
        document["free_tokens"] = meeting.free_tokens
    if meeting.met is Met.GRANTED:
        document |= {"strategy": meeting.strategy, "score": meeting.score, "compared": meeting.compared}
    return document
