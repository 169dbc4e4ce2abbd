"""Why a worker cannot take a waiting request now, whether one ever could, and when it may start. Pure.

The scripts decide; this tells what they go by (scripts/lib/{pull,choose,pin}.lua). Never here: reading it (explaining.py),
words for people (gateway/explained.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dispatch import scores
from dispatch.scores import Load, Need
from dispatch.states import WorkerState


class Reason(StrEnum):
    """Why not now; those that will not pass by themselves first."""

    GONE = "gone"  # its heartbeat has lapsed
    BARRED = "barred"  # this incarnation was abandoned: it is granted nothing any more
    QUARANTINED = "quarantined"
    DRAINING = "draining"
    TOO_SMALL = "too_small"  # all it could ever hold is less than the request needs
    LOADING = "loading"
    NO_PULL = "no_pull"  # it has not said what it can hold
    UNSEEN = "unseen"  # its heartbeat stands, and its pull was not heard of lately: it is passed over
    NOT_ACCEPTING = "not_accepting"
    KEPT_FOR_SUSPECT = "kept_for_suspect"  # it runs a suspect of a crash alone, or is kept free for one
    NOT_EMPTY = "not_empty"  # the request is such a suspect, and the worker holds others
    SLOTS = "slots"  # it holds as many requests as it holds at once
    NO_ROOM = "no_room"  # too few tokens are free
    KEPT_FOR_PINNED = "kept_for_pinned"  # enough are free, but kept for one that waited too long
    PREFILLING = "prefilling"  # it has so much to prefill that `pull` gives it no more for now
    BETTER_SOON = "better_soon"  # it has room, and one that is prefilling would serve the request so much better that it waits
    PAUSED = "paused"  # it has room, but the model's queue is paused


NEVER = frozenset({Reason.GONE, Reason.BARRED, Reason.QUARANTINED, Reason.DRAINING, Reason.TOO_SMALL})
BUSY = frozenset(
    {
        Reason.KEPT_FOR_SUSPECT,
        Reason.NOT_EMPTY,
        Reason.SLOTS,
        Reason.NO_ROOM,
        Reason.KEPT_FOR_PINNED,
        Reason.PREFILLING,
        Reason.BETTER_SOON,
    }
)
"""What passes as the worker works on."""


@dataclass(frozen=True, slots=True)
class Needs:
    """A waiting request.

    `alone`: a suspect of a crash, who runs with nothing beside it. `pulls`: by `pull`, which knows of closed workers; `patient`:
    and it still waits for a better one.
    """

    request: str
    cost_tokens: int
    alone: bool
    paused: bool
    prompt_tokens: int = 0
    pulls: bool = False
    patient: bool = False


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """A worker as Redis knows it: its parked pull (`limit_tokens` None: it never said) and its heartbeat (`state` None: none)."""

    id: str
    state: WorkerState | None = None
    progress: str = ""
    speed: float = 0.0  # tokens/s, measured
    limit_tokens: int | None = None
    used_tokens: int = 0
    slots: int = 0
    held: int = 0
    unseen_ms: int | None = None  # None: since a grant that it let lapse
    accepting: bool = True
    barred: bool = False
    alone: str = ""  # the suspect that it runs, or is kept free for
    pin: str = ""  # the waiting request that it keeps `pin_tokens` for
    pin_tokens: int = 0
    weight: float = 0.0  # what it parked with: decoded tokens/s,
    prefill_weight: float = 0.0  # and prompt tokens/s
    prefill_tokens: int = 0  # prompts granted to it that it has not answered yet

    @property
    def load(self) -> Load:
        """As scores see it."""
        limit = self.limit_tokens or 0
        pulls = (limit, self.used_tokens + self.pin_tokens, self.held + bool(self.pin), self.slots)
        return Load(self.id, *pulls, self.weight, self.prefill_weight, self.prefill_tokens)

    @property
    def opens_in_s(self) -> float:
        """When it takes more, at its measured speed; 0: it is open."""
        if not scores.is_closed(self.load):
            return 0.0
        return self.prefill_tokens / scores.prefill_speed(self.load) - scores.OPEN_S

    @property
    def free_tokens(self) -> int:
        """What nobody holds there."""
        return max(0, (self.limit_tokens or 0) - self.used_tokens)


@dataclass(frozen=True, slots=True)
class Judged:
    """A worker and why it cannot take the request now; no reason: it could."""

    worker: SeenWorker
    reasons: tuple[Reason, ...]

    @property
    def never(self) -> bool:
        """Whether it cannot ever hold the request."""
        return any(reason in NEVER for reason in self.reasons)

    @property
    def busy(self) -> bool:
        """Whether it takes requests and only has to work on to take this one."""
        return all(reason in BUSY for reason in self.reasons)


def judge(needs: Needs, w: SeenWorker, seen_within_ms: int) -> Judged:
    """All that keeps a worker from taking the request now, the most lasting first."""
    is_unseen = w.unseen_ms is None or w.unseen_ms >= seen_within_ms
    if w.state is None and is_unseen:
        return Judged(w, (Reason.GONE,))
    if w.barred:
        return Judged(w, (Reason.BARRED,))
    found = []
    if w.state in (WorkerState.QUARANTINED, WorkerState.DRAINING):
        found.append(Reason(w.state.value))
    if w.limit_tokens is not None and w.limit_tokens < needs.cost_tokens:
        found.append(Reason.TOO_SMALL)
    if w.state in (WorkerState.STARTING, WorkerState.LOADING):
        return Judged(w, (*found, Reason.LOADING))
    if w.limit_tokens is None:
        return Judged(w, (*found, Reason.NO_PULL))
    if is_unseen:
        found.append(Reason.UNSEEN)
    if not w.accepting and Reason.DRAINING not in found and Reason.QUARANTINED not in found:
        found.append(Reason.NOT_ACCEPTING)
    found += _no_place(needs, w)
    if needs.paused and not found:
        found.append(Reason.PAUSED)
    return Judged(w, tuple(found))


def judge_all(needs: Needs, workers: Sequence[SeenWorker], seen_within_ms: int) -> list[Judged]:
    """Each, and what only the others tell: that it waits for a better one."""
    judged = [judge(needs, w, seen_within_ms) for w in workers]
    if not needs.patient or needs.alone:
        return judged
    closed = [each.worker.load for each in judged if each.reasons == (Reason.PREFILLING,)]
    need = Need(needs.prompt_tokens, needs.cost_tokens)
    passed = {each.worker.id for each in judged if not each.reasons and not scores.suits(each.worker.load, need, closed)}
    return [Judged(each.worker, (Reason.BETTER_SOON,)) if each.worker.id in passed else each for each in judged]


def _no_place(needs: Needs, w: SeenWorker) -> list[Reason]:
    if w.alone and w.alone != needs.request:
        return [Reason.KEPT_FOR_SUSPECT]
    if needs.alone:
        return [Reason.NOT_EMPTY] if w.held else []
    found = []
    pinned_by_other = bool(w.pin) and w.pin != needs.request
    if w.held >= w.slots:
        found.append(Reason.SLOTS)
    if w.free_tokens < needs.cost_tokens:
        found.append(Reason.NO_ROOM)
    if not found and pinned_by_other and (w.held + 1 >= w.slots or w.free_tokens - w.pin_tokens < needs.cost_tokens):
        found.append(Reason.KEPT_FOR_PINNED)
    if not found and needs.pulls and w.pin != needs.request and scores.is_closed(w.load):
        found.append(Reason.PREFILLING)
    return found


class Impossible(StrEnum):
    """Why a request can never start with the workers there are."""

    NO_WORKERS = "no_workers"
    TOO_LARGE = "too_large"  # no worker's limit is as large as its cost
    NONE_STAYS = "none_stays"  # those that are large enough drain, are quarantined or barred


def impossible(judged: Sequence[Judged]) -> Impossible | None:
    """Why none of these could ever take it, or None."""
    there = [each for each in judged if Reason.GONE not in each.reasons]
    if not there:
        return Impossible.NO_WORKERS
    if any(not each.never for each in there):
        return None
    fits = any(Reason.TOO_SMALL not in each.reasons for each in there)
    return Impossible.NONE_STAYS if fits else Impossible.TOO_LARGE


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is looked at before a request. `tokens` is exact for the first of each line, else by their mean."""

    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """When a request may start: what waits ahead of it, at the speed of those that take requests, and then the `lacks`
    tokens that have to come free on `worker`, at its own speed."""

    seconds: float
    worker: str
    lacks_tokens: int
    speed: float
    workers: int


def outlook(needs: Needs, judged: Sequence[Judged], ahead: Ahead) -> Outlook | None:
    """None where nothing can be known: nobody takes requests, or no speed was measured.

    As if each answer filled what it was priced at: answers that end early bring it forward.
    """
    if needs.paused:
        return None
    working = [each for each in judged if each.busy and each.worker.speed > 0]
    if not working:
        return None
    speed = sum(each.worker.speed for each in working)
    first = min(working, key=lambda each: (lacks_tokens(needs, each) / each.worker.speed, each.worker.id))
    lacks = lacks_tokens(needs, first)
    at_once = not first.reasons
    seconds = 0.0 if at_once else ahead.tokens / speed + lacks / first.worker.speed
    return Outlook(seconds, first.worker.id, lacks, speed, len(working))


def lacks_tokens(needs: Needs, judged: Judged) -> int:
    """Tokens that have to come free there before it fits."""
    w, reasons = judged.worker, judged.reasons
    if Reason.NOT_EMPTY in reasons or Reason.KEPT_FOR_SUSPECT in reasons:
        return max(w.used_tokens, 0)
    kept = w.pin_tokens if w.pin and w.pin != needs.request else 0
    lacks = max(0, needs.cost_tokens + kept - w.free_tokens)
    # One of those held has to end, whatever is free.
    return max(lacks, w.used_tokens // w.held) if Reason.SLOTS in reasons and w.held else lacks
