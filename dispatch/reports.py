"""What workers say of themselves, their device and their model: heartbeats and cards, frozen values. Pure.

Never here: requests and their records (messages.py, records.py), what anybody makes of a report.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dispatch.messages import SCHEMA_VERSION, InputKind
from dispatch.states import WorkerState


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
    pool: str = ""
    launch: str = ""  # of which order it is; the same over its incarnations
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
