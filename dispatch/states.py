"""The life of a request and of a worker, as tables. Pure.

Rule 1: a state or an arrow that is not in these tables does not exist; the scripts are tested against them.
Rule 2: each arrow carries what in the world causes it; `docs/architecture.md` is printed from here.
Never here: I/O, clocks, keys.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class RequestState(StrEnum):
    """Where a request is, as stored."""

    QUEUED = "queued"
    GRANTED = "granted"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class WorkerState(StrEnum):
    """Where a worker is in its life, as its heartbeat says."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    QUARANTINED = "quarantined"
    DRAINING = "draining"
    GONE = "gone"


class Priority(StrEnum):
    """Which of a model's lines a request waits in; high is looked at first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class OnDisconnect(StrEnum):
    """What becomes of a request that nobody reads any more."""

    CANCEL = "cancel"
    CONTINUE = "continue"


_R = RequestState
_W = WorkerState

# state -> {next state: what causes the arrow}. Endings have no arrows: they absorb.
REQUEST_TRANSITIONS: Mapping[RequestState, Mapping[RequestState, str]] = {
    _R.QUEUED: {
        _R.GRANTED: "meets a parked pull with room",
        _R.CANCELLED: "cancel, or nobody reads it any more",
        _R.EXPIRED: "deadline",
    },
    _R.GRANTED: {
        _R.RUNNING: "begin: the engine is about to see it",
        _R.QUEUED: "not begun in time, or released: nothing charged",
        _R.WAITING: "retryable error before it began: charged, backoff",
        _R.FAILED: "error, or attempts used up",
        _R.CANCELLED: "cancel, or nobody reads it any more",
        _R.EXPIRED: "deadline",
    },
    _R.RUNNING: {
        _R.COMPLETED: "finish",
        _R.FAILED: "finish with an error, or attempts used up",
        _R.QUEUED: "released or drained: nothing charged; lease over or abandoned: charged",
        _R.WAITING: "retryable error: charged, backoff",
        _R.CANCELLED: "cancel, or nobody reads it any more",
        _R.EXPIRED: "deadline",
    },
    _R.WAITING: {
        _R.QUEUED: "backoff is over",
        _R.GRANTED: "backoff is over and a parked pull has room",
        _R.CANCELLED: "cancel, or nobody reads it any more",
        _R.EXPIRED: "deadline",
    },
    _R.COMPLETED: {},
    _R.FAILED: {},
    _R.CANCELLED: {},
    _R.EXPIRED: {},
}

WORKER_TRANSITIONS: Mapping[WorkerState, Mapping[WorkerState, str]] = {
    _W.STARTING: {
        _W.LOADING: "process is up, engine starts",
        _W.DRAINING: "SIGTERM",
        _W.GONE: "heartbeat lapsed",
    },
    _W.LOADING: {
        _W.READY: "engine has started and answered a probe",
        _W.QUARANTINED: "its new engine's canary says other tokens than its first one's",
        _W.DRAINING: "SIGTERM",
        _W.GONE: "heartbeat lapsed, or the engine could not start, or engines died again and again",
    },
    _W.READY: {
        _W.DRAINING: "SIGTERM, or asked to drain",
        _W.LOADING: "engine is being replaced: it died, hung or failed a probe",
        _W.QUARANTINED: "its canary's tokens changed",
        _W.GONE: "heartbeat lapsed",
    },
    _W.QUARANTINED: {
        _W.DRAINING: "SIGTERM",
        _W.GONE: "heartbeat lapsed",
    },
    _W.DRAINING: {_W.GONE: "holds nothing any more, or its time to drain is over"},
    _W.GONE: {},
}

ENDINGS: frozenset[RequestState] = frozenset(s for s, nexts in REQUEST_TRANSITIONS.items() if not nexts)
HELD: frozenset[RequestState] = frozenset({_R.GRANTED, _R.RUNNING})

# What a client is shown: one of six words, and a phase that says more.
_SHOWN: Mapping[RequestState, tuple[RequestState, str | None]] = {
    _R.QUEUED: (_R.QUEUED, "waiting"),
    _R.GRANTED: (_R.QUEUED, "granted"),
    _R.WAITING: (_R.QUEUED, "backoff"),
    _R.RUNNING: (_R.RUNNING, None),
}


def may_become(before: RequestState, after: RequestState) -> bool:
    """Whether the table has an arrow from `before` to `after`."""
    return after in REQUEST_TRANSITIONS[before]


def shown(state: RequestState) -> tuple[RequestState, str | None]:
    """The state and phase a client sees for a stored state."""
    return _SHOWN.get(state, (state, None))


_S = TypeVar("_S", bound=StrEnum)


def as_mermaid(transitions: Mapping[_S, Mapping[_S, str]]) -> str:
    """A mermaid state diagram of a table, for the documentation."""
    lines = ["stateDiagram-v2"]
    first = next(iter(transitions))
    lines.append(f"    [*] --> {first.value}")
    for state, nexts in transitions.items():
        lines.extend(f"    {state.value} --> {after.value}: {cause}" for after, cause in nexts.items())
        if not nexts:
            lines.append(f"    {state.value} --> [*]")
    return "\n".join(lines) + "\n"
