"""How the work on one request can end, as values, and THE mapping from exceptions to them. Pure.

Never here: what follows from an outcome (worker/execution.py writes it to the queue).
"""

from dataclasses import dataclass

from dispatch.errors import PenstockError
from worker.engines.base import EngineDead, EngineError


@dataclass(frozen=True, slots=True)
class Completed:
    """The answer is whole. `detail` is what its end carries."""

    detail: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """It can never be answered: the request itself is at fault, or what it asks for is not there."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Retryable:
    """This attempt failed; another may not. Charged."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class GivenBack:
    """Not finished, by nobody's fault (drain): another worker goes on. Not charged."""


@dataclass(frozen=True, slots=True)
class Moved:
    """It needs more memory than there is here now: another worker, or this one later, goes on. Not charged.

    `cost_tokens` is what its next grant must take.
    """

    cost_tokens: int
    why: str


@dataclass(frozen=True, slots=True)
class Lost:
    """It is no longer ours: cancelled, expired, or taken away. Nothing may be written."""

    reason: str


@dataclass(frozen=True, slots=True)
class Crashed:
    """The engine died under it. The worker abandons all it holds at once, by this evidence."""

    evidence: str
    own_fault: bool = True


Outcome = Completed | Failed | Retryable | GivenBack | Moved | Lost | Crashed


def outcome_of(error: Exception) -> Outcome:
    """THE mapping from what an engine or the queue raised to what becomes of the request."""
    if isinstance(error, EngineError):
        kind = Retryable if error.retryable else Failed
        return kind(error.code, str(error))
    if isinstance(error, EngineDead):
        return Crashed(str(error) or "the engine died without a word", error.own_fault)
    if isinstance(error, PenstockError):
        kind = Retryable if error.kind.retryable else Failed
        return kind(error.code, error.message)
    # A bug. Another attempt meets other circumstances; the limit of attempts ends it. Its words may quote a prompt.
    return Retryable("internal_error", f"A bug in the worker: {type(error).__name__}.")
