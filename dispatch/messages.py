"""What travels between gateway, Redis and worker: frozen values, and how they are written down. Pure.

Values that cross Redis are JSON by msgspec, or flat hash fields; every stored document carries `v`, its schema version.
Never here: I/O, clocks, keys, the wire shapes of HTTP (gateway/routes).
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from dispatch.errors import PenstockError
from dispatch.states import OnDisconnect, Priority, RequestState, WorkerState

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


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 mean off."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class InferenceRequest:
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
    body: dict[str, Any] = field(default_factory=dict)
    cost_tokens: int = 0
    v: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Usage:
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


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request on its way into a line. `input` is the encoded InferenceRequest; spans are milliseconds.

    `reader` names the gateway that will read the output ("" for a detached submit). `idempotency` is the hash of the
    client's key ("" for none), `body_hash` the hash of what it sent with it. `prompt_tokens` of the cost are to be prefilled.
    `strategy` ("" for the default) orders the parked pulls for it; `session` names what it belongs to ("" for nothing).
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


class EnqueueStatus(StrEnum):
    """What became of an enqueue."""

    OK = "ok"  # stored: it waits, or was granted at once
    REPLAY = "replay"  # the same idempotency key and body came before: `id` is the first request's
    MISMATCH = "mismatch"  # the same idempotency key came with another body
    FULL = "full"  # the backlog is at its limit; nothing was stored


@dataclass(frozen=True, slots=True)
class Enqueued:
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


@dataclass(frozen=True, slots=True)
class Grant:
    """A request under a lease: the right to work it. (attempt, nonce) is the fence."""

    request: str
    worker: str
    attempt: int
    nonce: str
    cost_tokens: int = 0
    inbox_id: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """Word to a worker that a request it held has ended without it (cancelled, expired) or was taken away."""

    request: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Begun:
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


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is left of a request whose output is no longer kept."""

    state: RequestState
    tenant: str


class EntryKind(StrEnum):
    """What an entry of an output log is."""

    CHUNK = "chunk"
    NOTE = "note"
    END = "end"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of a request's output log. `data` is JSON bytes exactly as stored; `chain` 16 hex of the hash chain.

    A note tells that a later attempt goes on from here: `{"attempt": int, "worker": str}`.

    A chunk's data: `{"text": str, "tokens": [int, ...]}` or `{"output": any}`. An end's data:
    `{"state": ending, "attempts": int, "finish_reason"?: str, "usage"?: {...}, "error"?: {"code", "message"}}`.
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
    granted_at_ms: int = 0
    attempt_begun_at_ms: int = 0
    story: tuple[Attempt, ...] = ()
    prompt_tokens: int = 0
    strategy: str = ""
    session: str = ""
    pinned: str = ""  # the worker that keeps room for it,
    reserved: str = ""  # or is kept free for it, a suspect
    meetings: str = ""  # see dispatch/meetings.py


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


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """One device under a worker, as its heartbeat tells. Bytes; `utilisation` 0..1 or None if unknown.

    `total_bytes` is without what the driver keeps for itself (`reserved_bytes`). `foreign_bytes`: what processes hold that are
    none of the worker's own; None where the driver does not say (in a container it often does not).
    """

    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    utilisation: float | None = None
    reserved_bytes: int = 0
    foreign_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RoomStatus:
    """Why a worker's room is what it is, in KV tokens: room = capacity - headroom - used - promised; below 0, it holds too much.

    `capacity`: all it could hold now; `used`: what the held fill; `promised`: granted and not visible yet. `bound_by`: "engine",
    "device" (its memory) or "overrun" (after one all held count at their most for a while). `free_bytes` is the device's,
    `promised_bytes` what other workers on it were promised and have not taken.
    """

    capacity_tokens: int
    headroom_tokens: int
    promised_tokens: int
    used_tokens: int
    room_tokens: int
    bound_by: str = "engine"
    free_bytes: int | None = None
    headroom_bytes: int = 0
    promised_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """How a worker's last probe of its engine went."""

    ok: bool
    at_ms: int
    took_s: float


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """`worker:<id>`, JSON with a TTL. Its presence is the health check."""

    id: str
    host: str
    pid: int
    model: str
    engine: str
    state: WorkerState
    limit_tokens: int
    slots: int
    weight: float
    held: int
    held_tokens: int
    started_at_ms: int
    beat_at_ms: int
    progress: str = ""
    error: str = ""
    gpu: GpuStatus | None = None
    rss_bytes: int = 0
    tokens_per_s: float = 0.0
    probe: ProbeReport | None = None
    prefill_weight: float = 0.0
    waiting: int = 0
    room: RoomStatus | None = None
    v: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class ModelCard:
    """`model:<name>`: what the gateway must know of a model, also when no worker runs.

    `max_cost_tokens` is the largest limit a worker of this model has ever offered: more can never be scheduled.
    `tokenizer` is the sha256 of the stored tokenizer files, "" when the engine tokenizes by itself. `temperature`, `top_p`
    and `top_k` are what the model's own files suggest; they hold for requests that name none. `moves_overruns`: a request
    that outgrows its cost can be moved on, so its cost may be what such requests need, not the most they may need.
    """

    name: str
    engine: str
    context_tokens: int
    kv_bytes_per_token: int
    max_cost_tokens: int
    kinds: tuple[InputKind, ...] = (InputKind.CHAT, InputKind.COMPLETION)
    tokenizer: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    created_at_s: int = 0
    moves_overruns: bool = False
    v: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the gateway needs to count and template: `tokenizer.json`, the chat template (jinja), special tokens by name."""

    tokenizer_json: str
    chat_template: str = ""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()
    v: int = SCHEMA_VERSION


def new_id(shard: str = "s0") -> str:
    """A request id: `<shard>.<random 128 bit>`."""
    return f"{shard}.{secrets.token_hex(16)}"


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
