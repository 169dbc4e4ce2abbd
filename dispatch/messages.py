"""What travels between gateway, Redis and worker: frozen values, and how they are written down. Pure.

Values that cross Redis are JSON by msgspec, fields of a hash, or words in a row (records.py, entries.py); every stored
document and record carries its schema version.
What every request makes anew is a frozen struct of msgspec, the rest are dataclasses: docs/decisions/0029.
Never here: I/O, clocks, keys, the wire shapes of HTTP (gateway/routes).
"""

import hashlib
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from dispatch.errors import PenstockError
from dispatch.states import OnDisconnect, Priority, RequestState

_T = TypeVar("_T")

SCHEMA_VERSION = 1
READABLE_VERSIONS = frozenset({1})


class InputKind(StrEnum):
    """The shape of what a client asked for."""

    CHAT = "chat"
    COMPLETION = "completion"
    OPAQUE = "opaque"


class FinishReason(StrEnum):
    """Why generation ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 mean off."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None


class InferenceRequest(msgspec.Struct, frozen=True):
    """What a client asked for, as the worker and its engine see it (stored as `{s}:input:<id>`).

    `prompt_token_ids` is what the gateway computed with the model card's tokenizer, chat template applied; empty when
    the card has no tokenizer (an upstream server tokenizes by itself). `body` is the client's own JSON for engines that
    pass it on (upstream), without fields that Penstock consumed. `input` is the document of an opaque request.
    """

    id: str
    model: str
    kind: InputKind
    sampling: Sampling
    prompt_token_ids: tuple[int, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    prompt: str = ""
    input: Any = None
    body: dict[str, Any] = msgspec.field(default_factory=dict)
    cost_tokens: int = 0
    v: int = SCHEMA_VERSION


class Usage(msgspec.Struct, frozen=True):
    """Tokens read and written, as OpenAI counts them."""

    prompt_tokens: int
    completion_tokens: int

    def as_openai(self) -> dict[str, int]:
        """The usage object of the OpenAI API."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class NewRequest(msgspec.Struct, frozen=True):
    """A request on its way into a line. `input` is the encoded InferenceRequest; spans are milliseconds.

    `reader` names the gateway that will read the output ("" for a detached submit). `idempotency` is the hash of the
    client's key ("" for none), `body_hash` the hash of what it sent with it. `prompt_tokens` of the cost are to be prefilled.
    `strategy` ("" for the default) orders the parked pulls for it; `session` names what it belongs to ("" for nothing).
    `webhook` is the URL that is told of its ending ("" for none), `webhook_events` of which endings ("" for all).
    """

    id: str
    model: str
    input: bytes
    kind: InputKind
    cost_tokens: int
    deadline_ms: int
    priority: Priority = Priority.NORMAL
    tenant: str = ""
    max_attempts: int = 3
    on_disconnect: OnDisconnect = OnDisconnect.CONTINUE
    reader: str = ""
    idempotency: str = ""
    body_hash: str = ""
    retry_of: str = ""
    prompt_tokens: int = 0
    strategy: str = ""
    session: str = ""
    webhook: str = ""
    webhook_events: str = ""

    @property
    def more(self) -> bytes:
        """What few requests have, as one word: a JSON object; b"" if it has none of it."""
        if not (self.idempotency or self.retry_of or self.session or self.webhook):
            return b""
        names = ("idempotency", "body_hash", "retry_of", "session", "webhook", "webhook_events")
        return msgspec.json.encode({name: value for name in names if (value := getattr(self, name))})


class EnqueueStatus(StrEnum):
    """What became of an enqueue."""

    OK = "ok"  # stored: it waits, or was granted at once
    REPLAY = "replay"  # the same idempotency key and body came before: `id` is the first request's
    MISMATCH = "mismatch"  # the same idempotency key came with another body
    FULL = "full"  # the backlog is at its limit; nothing was stored


class Enqueued(msgspec.Struct, frozen=True):
    """The answer to an enqueue. `position` is 0 when it was granted at once; `backlog` counts the model's waiting."""

    status: EnqueueStatus
    id: str
    state: RequestState
    position: int
    backlog: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A worker's parked pull: what it can hold. Redis derives room = limit_tokens - cost of what it holds there.

    `limit_tokens`: the sum of costs the worker is willing to hold (its true room + the cost of what it knows it holds).
    `slots`: how many requests at once. `weight`: decoded tokens/s, `prefill_weight`: prompt tokens/s, both measured.
    `accepting` false unparks (draining, loading). `memory` and `utilisation` are shares of the device (0 to 1) and `waiting`
    the requests its engine has not begun, as they were at this report: for the strategies that go by reports.
    """

    worker: str
    model: str
    limit_tokens: int
    slots: int
    weight: float
    accepting: bool = True
    prefill_weight: float = 0.0
    memory: float = 0.0
    utilisation: float = 0.0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Parked:
    """The answer to a park. `barred`: this incarnation was abandoned and will never be granted anything again."""

    barred: bool
    room_tokens: int
    held: int
    granted: int


class Grant(msgspec.Struct, frozen=True):
    """A request under a lease: the right to work it. (attempt, nonce) is the fence."""

    request: str
    worker: str
    attempt: int
    nonce: str
    cost_tokens: int = 0
    inbox_id: str = ""


class Stop(msgspec.Struct, frozen=True):
    """Word to a worker that a request it held has ended without it (cancelled, expired) or was taken away."""

    request: str
    attempt: int
    reason: str


class Begun(msgspec.Struct, frozen=True):
    """A full lease, what to compute, and where the output stands: the next append is `seq + 1`."""

    request: InferenceRequest
    seq: int
    attempt: int
    deadline_at_ms: int


class WriteStatus(StrEnum):
    """The answer to every write of a worker."""

    OK = "ok"
    DUP = "dup"  # it was written before; nothing changed
    GAP = "gap"  # an earlier seq is missing; nothing was written
    FENCED = "fenced"  # the lease is lost; nothing was written


@dataclass(frozen=True, slots=True)
class Renewed:
    """The answer to a renew: leases no longer ours as (request, attempt), and what Redis thinks we run but was not named."""

    lost: tuple[tuple[str, int], ...]
    unknown: tuple[Grant, ...]


class EntryKind(StrEnum):
    """What an entry of an output log is."""

    CHUNK = "chunk"
    NOTE = "note"
    END = "end"


class LogEntry(msgspec.Struct, frozen=True):
    """One entry of a request's output log. `data` is JSON bytes exactly as stored; `chain` 16 hex of the hash chain.

    A note tells that a later attempt goes on from here: `{"attempt": int, "worker": str}`.

    A chunk's data: `{"text": str, "tokens": [int, ...]}` or `{"output": any}`. An end's data:
    `{"finish_reason"?: str, "usage"?: {...}, "error"?: {"code", "message"}, "state": ending, "attempts": int, "worker": str,
    "created_at_ms", "begun_at_ms", "first_output_at_ms", "ended_at_ms": int}`; 0: it did not come to that.
    """

    request: str
    seq: int
    attempt: int
    kind: EntryKind
    data: bytes
    chain: str

    @property
    def event_id(self) -> str:
        """The id a client sees and resumes by."""
        return f"{self.seq}-{self.chain}"


class AttachStatus(StrEnum):
    """What an attach found."""

    OK = "ok"
    MISSING = "missing"  # never existed, or forgotten long ago
    GONE = "gone"  # ended; its output is no longer kept
    REWIND = "rewind"  # the log is not a continuation of what the client has; the whole log is returned


@dataclass(frozen=True, slots=True)
class Attached:
    """The log after the asked seq. `live` says whether more will come by the feed."""

    status: AttachStatus
    state: RequestState
    live: bool
    entries: tuple[LogEntry, ...]


def new_id(shard: str = "s0") -> str:
    """A request id: `<shard>.<random 128 bit>`."""
    return f"{shard}.{secrets.token_hex(16)}"


def first_chain(request: str) -> str:
    """The chain before a log's first entry: the random end of its request's id."""
    return request[-16:]


def older_first_chain(request: str) -> str:
    """The same of a log of version 1."""
    return hashlib.sha1(request.encode(), usedforsecurity=False).hexdigest()[:16]


def encode(value: object) -> bytes:
    """A value as JSON bytes."""
    return msgspec.json.encode(value)


def decode(data: bytes | str, kind: type[_T], what: str) -> _T:
    """A stored document read back strictly. Raises PenstockError("bad_record") naming `what`."""
    try:
        value = msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise PenstockError(
            "bad_record",
            f"{what} is not a readable {kind.__name__}: {error}.",
            hint="Another program may have written this key; delete it, or point Penstock at a Redis of its own.",
        ) from error
    version = getattr(value, "v", SCHEMA_VERSION)
    if version not in READABLE_VERSIONS:
        raise PenstockError(
            "bad_record",
            f"{what} has schema version {version}; this Penstock reads {sorted(READABLE_VERSIONS)}.",
            hint="Run the same release of Penstock everywhere, or the one before.",
        )
    return value
