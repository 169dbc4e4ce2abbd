"""The plain words of an explanation, each with its numbers. Pure. Never here: which of them hold."""

from dispatch.meetings import Meeting, Met
from dispatch.reasons import Needs, Reason, SeenWorker


def reason_words(reason: Reason, needs: Needs, w: SeenWorker) -> str:
    """Why a worker does not take a request now."""
    unseen = "since it let a grant lapse" if w.unseen_ms is None else f"for {span(w.unseen_ms)}"
    match reason:
        case Reason.NO_ROOM:
            return f"{w.free_tokens:,} of {w.limit_tokens:,} tokens are free, it needs {needs.cost_tokens:,}"
        case Reason.TOO_SMALL:
            return f"holds {w.limit_tokens:,} tokens at most, it needs {needs.cost_tokens:,}"
        case Reason.SLOTS:
            return f"holds {w.held} of at most {w.slots} requests"
        case Reason.UNSEEN:
            return f"was not heard of {unseen}"
        case Reason.GONE:
            return f"is gone: it was not heard of {unseen}"
        case Reason.LOADING:
            return f"is loading: {w.progress}" if w.progress else "is loading"
        case Reason.NO_PULL:
            return "has not said yet what it can hold"
        case Reason.DRAINING:
            return "drains: it takes nothing new"
        case Reason.QUARANTINED:
            return "is in quarantine: its answers to a known prompt changed"
        case Reason.BARRED:
            return "its engine died; this incarnation of it takes nothing any more"
        case Reason.NOT_ACCEPTING:
            return "takes nothing now"
        case Reason.KEPT_FOR_SUSPECT:
            return "runs a request alone that was there when an engine died, or is kept free for one"
        case Reason.KEPT_FOR_PINNED:
            return f"keeps its next {w.pin_tokens:,} tokens for one that has waited too long"
        case Reason.NOT_EMPTY:
            return f"still holds {w.held} others, and this one runs alone"
        case Reason.PREFILLING:
            soon = f"takes more in about {max(0.1, w.opens_in_s):.1f} s"
            return f"has {w.prefill_tokens:,} prompt tokens still to prefill, {soon}"
        case Reason.BETTER_SOON:
            return "has room, but one that is still prefilling would serve it so much better that it waits for that one"
        case Reason.PAUSED:
            return "has room, but the queue is paused"


def kept_words(needs: Needs, w: SeenWorker) -> str:
    """That a worker keeps room for a request, and why."""
    if needs.alone:
        return f"{w.id} is kept free for it: it was there when an engine died, so it runs alone"
    lacks = max(0, needs.cost_tokens - w.free_tokens)
    return f"{w.id} keeps what becomes free for it, as others have overtaken it too long; {lacks:,} tokens are missing"


def met_words(meeting: Meeting) -> str:
    """What came of a meeting."""
    match meeting.met:
        case Met.GRANTED:
            of = f"the lowest of {meeting.compared}" if meeting.compared > 1 else "the only one with room"
            return f"{meeting.worker} was chosen by {meeting.strategy}: score {meeting.score:.6g}, {of}"
        case Met.GRANTED_FROM_LINE:
            return f"{meeting.worker} took it from the line when its room grew"
        case Met.PAUSED:
            return "it waits: the queue was paused"
        case Met.NO_PULL:
            return "it waits: no worker had any room"
        case Met.NO_ROOM:
            return f"it waits: the most room was {meeting.free_tokens:,} tokens, on {meeting.worker}"
        case Met.PREFILLING:
            return "it waits: all with room had enough to prefill"
        case Met.BETTER:
            return f"it waits for {meeting.worker}, which would serve it much better than any that was open"
        case Met.ALONE:
            kept = f"; {meeting.worker} is kept free for it" if meeting.worker else ""
            return f"it waits to run alone, for it was there when an engine died{kept}"
        case Met.PINNED:
            return f"it had waited too long: {meeting.worker} keeps what becomes free for it ({meeting.free_tokens:,} then)"


def span(span_ms: int) -> str:
    """Milliseconds as seconds."""
    return f"{max(0, span_ms) / 1000:.1f} s"
