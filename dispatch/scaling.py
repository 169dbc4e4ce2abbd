"""What the autoscaler and its hands write down for each other: orders, reports of hosts, decisions. Frozen values. Pure.

Orders are level-triggered: they name every worker that should be, never "start one more". A lost, doubled or late one does
no harm; one of an older epoch is refused where it would be written. Never here: what is decided (autoscaler), where it is
kept (scale_store.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from dispatch.messages import SCHEMA_VERSION
from dispatch.reports import GpuStatus


class LauncherName(StrEnum):
    """Who starts and ends workers."""

    LOCAL = "local"
    AGENTS = "agents"
    DOCKER = "docker"
    KUBERNETES = "kubernetes"
    EXEC = "exec"


class ScalingPolicy(StrEnum):
    """What may ask for workers. autoscaler/policy.py has what each asks for."""

    QUEUE_DELAY = "queue_delay"
    REQUEST_COUNT = "request_count"
    UTILISATION = "utilisation"
    LATENCY = "latency"


class LaunchState(StrEnum):
    """What the hands know of a worker that was ordered."""

    STARTING = "starting"  # its process is being made
    RUNNING = "running"
    BACKOFF = "backoff"  # it ended by itself, and is started again in a while
    CRASH_LOOP = "crash_loop"  # it ended too often: the circuit is open
    REFUSED = "refused"  # it cannot be placed here: `error` says why
    STOPPING = "stopping"  # no longer ordered, and not yet gone
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Launch:
    """One worker that should be. `id` is never used again; its heartbeats carry it.

    `worker` are settings of the section `worker` by name (model, engine, sim_gpu, ...), as text; never a secret: those stay
    with the hands. `host` "" leaves the choice to the hands. `need_bytes` is the GPU memory it needs to start, 0: not known.
    """

    id: str
    pool: str
    worker: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    need_bytes: int = 0
    ordered_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class PoolOrders:
    """All of one pool. `retiring`: those of `launches` that drain: they are next to go, and take nothing new meanwhile.

    `launcher`: who carries them out; "" in orders of a release that did not say.
    """

    pool: str
    model: str
    launches: tuple[Launch, ...] = ()
    retiring: tuple[str, ...] = ()
    launcher: str = ""


@dataclass(frozen=True, slots=True)
class Orders:
    """The desired state of one group of pools, whole. What is not named here should not run."""

    group: str
    epoch: int
    pools: tuple[PoolOrders, ...] = ()
    v: int = SCHEMA_VERSION

    def launches(self) -> dict[str, Launch]:
        """Every launch by its id."""
        return {launch.id: launch for pool in self.pools for launch in pool.launches}


@dataclass(frozen=True, slots=True)
class LaunchReport:
    """What the hands know of one launch. `exits`: how often its process ended unwanted; `error` and `last_words` (the last lines
    of its log) tell of the last end; only people at the CLI see the words. `pid` 0: no process. `worker` and `need_bytes` as in
    the launch it was started by, where the hands know: a leader that lost its orders can write them again."""

    id: str
    pool: str
    state: LaunchState
    host: str = ""
    pid: int = 0
    since_ms: int = 0
    exits: int = 0
    error: str = ""
    last_words: tuple[str, ...] = ()
    worker: Mapping[str, str] = field(default_factory=dict)
    need_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HostReport:
    """`{scale}:host:<host>`, with a TTL: what an agent says of its host. `epoch`: of the orders it last carried out."""

    host: str
    agent: str
    seen_at_ms: int
    gpus: tuple[GpuStatus, ...] = ()
    free_bytes: int = 0  # of the host's own memory
    cached_models: tuple[str, ...] = ()
    launches: tuple[LaunchReport, ...] = ()
    epoch: int = 0
    most_workers: int = 0
    v: int = SCHEMA_VERSION


class Action(StrEnum):
    """What a decision does to the number of workers."""

    UP = "up"
    DOWN = "down"
    HOLD = "hold"
    BLOCKED = "blocked"  # more are needed and cannot be had: `reason` says why


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One decision of one tick: an entry of `{scale}:log`, a line of the log, the body of `penstock scale history`.

    `desired_raw` is what the policy asked for before bounds, windows and steps (`limits` names those that held it back).
    `repeated` counts equal holds that this entry stands for.
    """

    at_ms: int
    pool: str
    model: str
    action: Action
    from_workers: int
    to_workers: int
    desired_raw: float
    bounds: tuple[int, int]
    policy: str
    reason: str
    inputs: Mapping[str, float | int | str | None] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    dry_run: bool = False
    epoch: int = 0
    repeated: int = 0
    v: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class PoolOverride:
    """What an operator set by `penstock scale set` and `pause`; None: as in the settings. A paused pool is left as it is."""

    min: int | None = None
    max: int | None = None
    target_s: float | None = None
    paused: bool = False
    v: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What `penstock scale show` tells of a pool: its last decision and its workers of that moment, by state."""

    pool: str
    model: str
    group: str
    launcher: str
    leader: str
    decided: DecisionRecord
    workers: Mapping[str, int] = field(default_factory=dict)
    cold_start_s: float | None = None
    tokens_per_s_each: float = 0.0
    unplaceable: str = ""
    override: PoolOverride | None = None
    reports: tuple[LaunchReport, ...] = ()
    v: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who leads a group now. `epoch` only grows: what an older one writes is refused."""

    leader: str
    epoch: int
    leads: bool
