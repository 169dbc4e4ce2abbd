"""What is stored of requests and lines, as readers see it: frozen values. Pure.

Never here: what travels between the roles (messages.py), what workers say of themselves (reports.py), HTTP shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dispatch.messages import InputKind
from dispatch.states import OnDisconnect, Priority, RequestState


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is left of a request whose output is no longer kept."""

    state: RequestState
    tenant: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that did not end its request: who had it from when to when (ms; 0 = it never began), and why it was over.

    `seq` is how far the output had come.
    """

    attempt: int
    worker: str
    granted_at: int
    begun_at: int
    left_at: int
    seq: int
    why: str


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request's stored hash, read back. Times are milliseconds since the epoch by Redis's clock; 0 = not yet."""

    id: str
    model: str
    kind: InputKind
    state: RequestState
    priority: Priority
    tenant: str
    attempt: int
    charged: int
    crashes: int
    worker: str
    cost_tokens: int
    seq: int
    chain: str
    on_disconnect: OnDisconnect
    retry_of: str
    created_at_ms: int
    deadline_at_ms: int
    begun_at_ms: int
    first_output_at_ms: int
    ended_at_ms: int
    not_before_ms: int
    max_attempts: int
    queued_at_ms: int = 0
    granted_at_ms: int = 0
    attempt_begun_at_ms: int = 0
    story: tuple[Attempt, ...] = ()
    prompt_tokens: int = 0
    strategy: str = ""
    session: str = ""
    webhook: str = ""
    webhook_events: str = ""  # space-separated; "" for all
    pinned: str = ""  # the worker that keeps room for it,
    reserved: str = ""  # or is kept free for it, a suspect
    meetings: str = ""  # see dispatch/meetings.py


@dataclass(frozen=True, slots=True)
class Ending:
    """What is told of a request that has ended, beside its output: a few of a record's fields."""

    id: str
    model: str
    kind: InputKind
    state: RequestState
    attempt: int
    worker: str
    retry_of: str
    created_at_ms: int
    begun_at_ms: int
    first_output_at_ms: int
    ended_at_ms: int


@dataclass(frozen=True, slots=True)
class QueueLine:
    """One model's waiting line of one priority."""

    model: str
    priority: Priority
    backlog: int
    oldest_wait_ms: int


@dataclass(frozen=True, slots=True)
class QueueStats:
    """One model's lines and counters (since the counters were first written)."""

    model: str
    lines: tuple[QueueLine, ...]
    paused: bool
    running: int
    parked: int
    totals: Mapping[str, int]

    @property
    def backlog(self) -> int:
        """All that waits, over the priorities."""
        return sum(line.backlog for line in self.lines)

    @property
    def oldest_wait_ms(self) -> int:
        """How long the oldest has waited, over the priorities."""
        return max((line.oldest_wait_ms for line in self.lines), default=0)
