"""What is stored of requests and lines, as readers see it: frozen values, and how they are read back. Pure.

Never here: what travels between the roles (messages.py), what workers say of themselves (reports.py), HTTP shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from dispatch.errors import PenstockError
from dispatch.messages import InputKind, first_chain
from dispatch.states import OnDisconnect, Priority, RequestState

ASKED = ("v", "deadline", "created", "max_attempts", "prompt")
WHAT = ("on_disconnect", "kind", "priority", "strategy", "model", "tenant")
"""The words of a record's fields `asked` and `what`, which never change. The last may be of several words or none; no strategy is
"-". Two fields, for one of over 64 bytes makes Redis keep the hash in three times the room."""
GRANT = ("attempt", "nonce", "worker", "inbox", "granted_at")
"""The words of its field `grant`: what comes with each grant."""
ROWS = {"asked": ASKED, "what": WHAT, "grant": GRANT}
_READABLE_VERSIONS = frozenset({"1", "2"})
"""Version 1 had a field for each of these words."""


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

    @property
    def ending(self) -> "Ending":
        """What is told of it once it has ended."""
        return Ending(
            self.id, self.model, self.kind, self.state, self.attempt, self.worker, self.retry_of,
            self.created_at_ms, self.begun_at_ms, self.first_output_at_ms, self.ended_at_ms,
        )  # fmt: skip


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


def plain_fields(stored: Mapping[bytes, bytes]) -> dict[str, str]:
    """A record's stored hash, its words in a row as fields of their own.

    A field of the name of a word that never changes says what became of it since; one of `grant`, what an older release wrote
    before it.
    """
    fields = {name.decode(): value.decode() for name, value in stored.items()}
    never: dict[str, str] = {}
    granted: dict[str, str] = {}
    for name, words in ROWS.items():
        if name in fields:
            into = granted if name == "grant" else never
            into |= zip(words, fields.pop(name).split(" ", len(words) - 1), strict=False)
    if never.get("strategy") == "-":
        never["strategy"] = ""
    return never | fields | granted


def record_from(request: str, stored: Mapping[bytes, bytes], key: str) -> RequestRecord:
    """A stored hash, read strictly. Raises PenstockError("bad_record") naming `key`."""
    try:
        f = plain_fields(stored)
        if f.get("v") not in _READABLE_VERSIONS:
            raise ValueError(f"its schema version is {f.get('v') or 'missing'}")
        return RequestRecord(
            id=request,
            model=f.get("model", ""),
            kind=InputKind(f.get("kind", "")),
            state=RequestState(f.get("state", "")),
            priority=Priority(f.get("priority", "")),
            tenant=f.get("tenant", ""),
            attempt=_number(f, "attempt"),
            charged=_number(f, "charged"),
            crashes=_number(f, "crashes"),
            worker=f.get("worker", ""),
            cost_tokens=_number(f, "cost"),
            seq=_number(f, "seq"),
            chain=f.get("chain", first_chain(request)),
            on_disconnect=OnDisconnect(f.get("on_disconnect", "")),
            retry_of=f.get("retry_of", ""),
            created_at_ms=_number(f, "created"),
            deadline_at_ms=_number(f, "deadline"),
            begun_at_ms=_number(f, "begun_at"),
            first_output_at_ms=_number(f, "first_output_at"),
            ended_at_ms=_number(f, "ended_at"),
            not_before_ms=_number(f, "not_before"),
            max_attempts=_number(f, "max_attempts"),
            queued_at_ms=_number(f, "queued_at"),
            granted_at_ms=_number(f, "granted_at"),
            attempt_begun_at_ms=_number(f, "attempt_begun_at") or _number(f, "begun_at"),
            story=tuple(msgspec.json.decode(line, type=Attempt) for line in f.get("story", "").splitlines()),
            prompt_tokens=_number(f, "prompt"),
            strategy=f.get("strategy", ""),
            session=f.get("session", ""),
            webhook=f.get("webhook", ""),
            webhook_events=f.get("webhook_events", ""),
            pinned=f.get("pinned", ""),
            reserved=f.get("reserved", ""),
            meetings=f.get("meetings", ""),
        )
    except (ValueError, msgspec.MsgspecError) as error:
        raise unreadable(key, error) from error


def ending_from(request: str, stored: Mapping[bytes, bytes], key: str) -> Ending:
    """The same of the few fields that an ending needs."""
    try:
        f = plain_fields(stored)
        return Ending(
            request, f["model"], InputKind(f["kind"]), RequestState(f["state"]), _number(f, "attempt"), f.get("worker", ""),
            f.get("retry_of", ""), _number(f, "created"), _number(f, "begun_at"), _number(f, "first_output_at"),
            _number(f, "ended_at"),
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise unreadable(key, error) from error


def _number(fields: Mapping[str, str], name: str) -> int:
    return int(fields.get(name, "0") or "0")


def unreadable(key: str, why: Exception) -> PenstockError:
    """The error for a stored record that is none of ours."""
    return PenstockError(
        "bad_record",
        f"{key} cannot be read: {why}.",
        hint="Another program may have written this key; delete it, or point Penstock at a Redis of its own.",
    )
