"""The settings: their names, types, defaults and meaning. The only place for them.

Order: flag > `PENSTOCK_` environment > `.env` > `penstock.toml` > default. Unknown keys are errors with a suggestion.
Never here: what the values cause.
"""

import re
import urllib.parse
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from dispatch.errors import PenstockError
from dispatch.keys import check_model_name
from dispatch.rules import QueueRules
from dispatch.scores import DEFAULT, Strategy
from dispatch.signing import secret_bytes

_LEAST_KEY_CHARACTERS = 8
_LEAST_SECRET_CHARACTERS = 16
# What an Authorization header and a comma-separated variable carry unchanged.
_KEY = re.compile(r"[!-+\--~]*")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Durability(StrEnum):
    """What an acknowledged request outlives. docs/durability.md has the table."""

    MEMORY = "memory"
    AOF = "aof"
    AOF_ALWAYS = "aof-always"
    REPLICATED = "replicated"


class Launcher(StrEnum):
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


_DAY = "(?:mon|tue|wed|thu|fri|sat|sun)"
_TIME = "(?:[01]?[0-9]|2[0-3]):[0-5][0-9]"
# autoscaler/pool_policy.py reads what this lets through.
_FLOOR = re.compile(
    rf"(?:{_DAY}(?:-{_DAY})?(?:,{_DAY}(?:-{_DAY})?)* +)?({_TIME}) *- *({_TIME}|24:00) +[0-9]{{1,5}}", re.IGNORECASE
)
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")


class RedisSettings(_Section):
    """Where Redis is, and what it must promise. docs/durability.md compares the modes."""

    url: str | None = Field(
        None,
        description="redis://, rediss://, unix:// or redis+sentinel://host:port,host:port/service URL; "
        "empty: `up` starts a server of its own",
    )
    password: SecretStr | None = Field(None, description="password, if the URL carries none")
    durability: Durability = Field(
        Durability.MEMORY, description="what must outlive a failure of Redis: memory, aof, aof-always or replicated"
    )
    replica_wait_ms: int = Field(
        500, ge=1, le=3000, description="replicated: how long an accepted request may wait for a replica to have it"
    )

    @field_validator("url")
    @classmethod
    def _is_a_url_of_redis(cls, url: str | None) -> str | None:
        if not url:
            return url
        scheme, separator, _ = url.partition("://")
        if not separator or scheme not in _REDIS_SCHEMES:
            raise ValueError(f"it must begin with one of {', '.join(f'{s}://' for s in _REDIS_SCHEMES)}")
        if scheme in ("redis", "rediss"):
            parts = urllib.parse.urlsplit(url)
            try:
                _ = parts.port
            except ValueError:
                raise ValueError("its port is no number from 0 to 65535") from None
            if parts.path.strip("/") and not parts.path.strip("/").isdigit():
                raise ValueError("what follows the last / must be the number of a database")
        return url

    @property
    def wait_replica_ms(self) -> int:
        """How long a write that was promised waits for a replica; 0: not at all."""
        return self.replica_wait_ms if self.durability is Durability.REPLICATED else 0


class GatewaySettings(_Section):
    """The HTTP gateway."""

    host: str = Field("127.0.0.1", description="address to listen on; a non-loopback one needs api_keys")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; `up` takes the next free one if the default is taken")
    max_body_bytes: int = Field(2 * 1024 * 1024, ge=1024, description="largest request body")
    ping_s: float = Field(15.0, gt=0, description="silence on a stream before a ping comment")
    reader_buffer_bytes: int = Field(262_144, ge=4096, description="output a slow reader may leave unread before it is cut")
    write_timeout_s: float = Field(15.0, gt=0, description="how long one write to a slow reader may take")
    drain_timeout_s: float = Field(20.0, ge=0, description="how long open streams may go on after SIGTERM")


class QueueSettings(_Section):
    """The queue's numbers that an operator may change; all processes must agree."""

    max_backlog: int = Field(10_000, ge=0, description="requests of one model that may wait; more are refused with 429")
    max_attempts: int = Field(3, ge=1, description="charged attempts before a request is a dead letter")
    deadline_s: float = Field(3600.0, gt=0, description="deadline of a request that names none")
    max_deadline_s: float = Field(86_400.0, gt=0, description="longest deadline a request may name")
    lease_s: float = Field(10.0, gt=0, description="lease of a running request; renewed while its engine makes steps")
    retention_s: float = Field(900.0, gt=0, description="how long an ended request's output is kept")
    strategy: Strategy = Field(DEFAULT, description="what chooses the worker of a request that names no strategy itself")
    strategies: Mapping[str, Strategy] = Field(
        {}, description="the same for single models, like demo=session,other=round_robin; in TOML a table"
    )

    @field_validator("strategies", mode="before")
    @classmethod
    def _are_strategies(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise ValueError("it must be model=strategy pairs")
        for model, strategy in given.items():
            try:
                check_model_name(str(model))
            except PenstockError as error:
                raise ValueError(f"{model!r} can be no model's name; {error.hint[:1].lower()}{error.hint[1:-1]}") from error
            if strategy not in list(Strategy):
                raise ValueError(f"for {model!r}, {strategy!r} is none of {', '.join(Strategy)}")
        return given

    def strategy_of(self, model: str) -> Strategy:
        """What chooses the worker of a model's requests that name no strategy themselves."""
        return self.strategies.get(model, self.strategy)

    def rules(self) -> QueueRules:
        """The queue's rules with these numbers."""
        return QueueRules(
            max_backlog=self.max_backlog,
            lease_ms=int(self.lease_s * 1000),
            retention_ms=int(self.retention_s * 1000),
        )


class WorkerSettings(_Section):
    """A worker."""

    model: str = Field("demo", description="`demo`, a model folder, a hub id, or the upstream's model name")
    served_name: str | None = Field(None, description="name clients use for it; default: `demo`, the folder's name, the hub id")
    engine: Literal["transformers", "sim", "upstream"] = Field("transformers", description="what generates")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="weights' type; auto: float32 on CPU")
    kv_tokens: int | None = Field(None, ge=64, description="KV budget in tokens; default: what memory allows")
    slots: int | None = Field(None, ge=1, description="requests at once; default: the engine's own")
    weight_seed: float | None = Field(
        None, gt=0, description="decoded tokens/s with 32 sequences that it is first taken to make; default: by its device"
    )
    weight_measured: bool = Field(True, description="replace the seed by the speed measured in the engine's own steps")
    memory_headroom: float = Field(0.02, ge=0, lt=1, description="share of the device's memory that is left to others")
    heartbeat_s: float = Field(1.0, gt=0, description="time between beats")
    heartbeat_ttl_s: float = Field(5.0, gt=0, description="a worker not heard of for this long is gone")
    drain_timeout_s: float = Field(30.0, ge=0, description="how long what it holds may finish after SIGTERM")
    isolate: bool | None = Field(None, description="run the engine in a child process; default: transformers yes, others no")
    hang_s: float = Field(10.0, gt=0, description="an engine that owes steps and makes none for this long is replaced")
    engine_failures: int = Field(5, ge=1, description="dead engines without a completed request in between before it gives up")
    probe_after_s: float = Field(30.0, gt=0, description="silence of an idle engine before a minimal real inference")
    probe_timeout_s: float = Field(30.0, gt=0, description="how long that may take before the engine is replaced")
    sim_faults: bool = Field(False, description="sim engine: prompts with [[crash]], [[hang]], [[oom]]... cause that; for tests")
    sim_gpu: str = Field("A10", description="sim engine: which GPU of its table")
    sim_speed: float = Field(1.0, gt=0, description="sim engine: times faster than that GPU; inf: instant")
    upstream_url: str | None = Field(None, description="upstream engine: base URL of an OpenAI-compatible server, with /v1")
    upstream_api_key: SecretStr | None = Field(None, description="upstream engine: its API key")
    pool: str = Field("", description="the pool it was started for; set by launchers")
    launch: str = Field("", description="the order it was started for; set by launchers")

    @field_validator("served_name")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        try:
            return name and check_model_name(name)
        except PenstockError as error:
            raise ValueError(f"it can be no model's name; {error.hint[:1].lower()}{error.hint[1:-1]}") from error


class PoolSettings(_Section):
    """One pool: the workers of one model that are scaled together."""

    model: str | None = Field(None, description="what its workers run; default: worker.model")
    launcher: Launcher | None = Field(None, description="who starts its workers; default: autoscaler.launcher")
    min: int = Field(0, ge=0, le=10_000, description="least workers")
    max: int = Field(1, ge=0, le=10_000, description="most workers")
    initial: int = Field(0, ge=0, le=10_000, description="workers to start with, until they were idle for idle_timeout_s")
    policies: tuple[ScalingPolicy, ...] = Field(
        (ScalingPolicy.QUEUE_DELAY,), description="what asks for workers; the largest wish counts"
    )
    target_s: float = Field(5.0, gt=0, description="queue_delay: how long a request should wait at most")
    requests_per_worker: float = Field(
        8.0, gt=0, description="request_count: requests, waiting or running, a worker is there for"
    )
    utilisation: float = Field(0.8, gt=0, le=1, description="utilisation: the share of a GPU, or of its memory, that is enough")
    ttft_s: float = Field(2.0, gt=0, description="latency: p95 of the time to the first token that is still good")
    up_window_s: float = Field(0.0, ge=0, description="go up only to the least wish of this long")
    down_window_s: float = Field(60.0, ge=0, description="go down only to the peak wish of this long")
    step_up: int = Field(0, ge=0, description="most workers more at once; 0: any number")
    step_down: int = Field(0, ge=0, description="most workers fewer at once; 0: any number")
    idle_timeout_s: float = Field(300.0, ge=0, description="idle for this long, the pool goes to its min")
    floors: tuple[str, ...] = Field((), description='least workers by the clock (UTC), like "mon-fri 08:00-18:00 2"')
    need_bytes: int = Field(0, ge=0, description="GPU memory a worker needs to start; 0: not known")
    worker: Mapping[str, str] = Field({}, description="worker settings of this pool, like engine=sim,sim_gpu=A100")
    deployment: str | None = Field(None, description="kubernetes launcher: its Deployment; default: autoscaler.deployment")

    @field_validator("floors")
    @classmethod
    def _are_floors(cls, floors: tuple[str, ...]) -> tuple[str, ...]:
        for floor in floors:
            found = _FLOOR.fullmatch(floor.strip())
            if not found or found[1].zfill(5) == found[2].zfill(5):
                raise ValueError(f'{floor!r} is not days, a span of time (UTC) and a number, like "mon-fri 08:00-18:00 2"')
        return floors


class AutoscalerSettings(_Section):
    """The autoscaler, its launchers and the host agents."""

    group: str = Field("main", pattern=_NAME, description="autoscalers of one group share its pools; one of them leads")
    launcher: Launcher = Field(Launcher.AGENTS, description="who starts workers, where a pool does not say: agents, docker, ...")
    tick_s: float = Field(1.0, gt=0, description="time between two decisions")
    lease_s: float = Field(5.0, gt=0, description="a leader not heard of for this long is replaced")
    dry_run: bool = Field(False, description="decide and record, and change nothing")
    port: int | None = Field(None, ge=0, le=65535, description="port of /livez, /readyz and /metrics on 127.0.0.1; default: none")
    pools: Mapping[str, PoolSettings] = Field({}, description="the pools by name; in TOML [autoscaler.pools.NAME], else JSON")
    history: int = Field(10_000, ge=100, description="decisions that are kept")
    kill_after_s: float = Field(10.0, gt=0, description="a worker told to end is killed so long after its drain should be over")
    script: str | None = Field(None, description="exec launcher: the program it calls, JSON in and out")
    image: str = Field("penstock-worker", description="docker launcher: the image of its workers")
    docker_host: str = Field("unix:///var/run/docker.sock", description="docker launcher: the engine's API, unix:// or http://")
    docker_network: str | None = Field(None, description="docker launcher: the network its workers join")
    docker_gpus: str = Field(
        "0", description="docker launcher: GPU ids, of which each worker gets the least used one; all: every one; none: no GPU"
    )
    deployment: str | None = Field(None, description="kubernetes launcher: the Deployment of its workers, namespace/name")
    kubernetes_url: str | None = Field(None, description="kubernetes launcher: the API; default: the one of this pod's cluster")


class AgentSettings(_Section):
    """The agent on a GPU host."""

    host: str | None = Field(None, pattern=_NAME, description="this host's name; default: what the machine calls itself")
    group: str = Field("main", pattern=_NAME, description="the autoscaler group whose orders it carries out")
    poll_s: float = Field(10.0, gt=0, description="it looks at its orders by itself this often, also if nobody rings")
    report_s: float = Field(1.0, gt=0, description="time between its reports")
    max_workers: int | None = Field(None, ge=0, description="most workers here; default: what GPU memory allows, on CPU one")
    rq_url: str | None = Field(None, description="Redis of the bell and of webhooks; default: redis.url")
    secret: SecretStr | None = Field(
        None, description="signs the bell; the same for autoscaler, gateways and agents; 16 characters or more"
    )
    webhooks: bool = Field(True, description="deliver webhooks, too")
    state_dir: Path | None = Field(None, description="what it must find again after a restart; default: ~/.local/state/penstock")
    fake_gpus: tuple[str, ...] = Field((), description="GPUs to play, like A10=24,A10=24 (GiB); for tests")

    @field_validator("secret")
    @classmethod
    def _is_long(cls, secret: SecretStr | None) -> SecretStr | None:
        # Whoever reads the bell's Redis can try secrets against a job's signature.
        if secret is not None and len(secret.get_secret_value()) < _LEAST_SECRET_CHARACTERS:
            raise ValueError(f"it is shorter than {_LEAST_SECRET_CHARACTERS} characters")
        return secret


class WebhookSettings(_Section):
    """Webhooks on endings."""

    secret: SecretStr | None = Field(None, description="signs webhooks, whsec_<base64>; without it none is taken")
    allow_private: bool = Field(False, description="webhooks may go to private, loopback and link-local addresses; for tests")
    tries: int = Field(8, ge=1, le=50, description="tries before a webhook is given up")
    timeout_s: float = Field(5.0, gt=0, le=60, description="how long one try may take")
    backoff_s: float = Field(
        5.0, gt=0, le=3600, description="wait after the first failed try; grows threefold, to an hour at most"
    )

    @field_validator("secret")
    @classmethod
    def _is_a_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            secret_bytes(secret.get_secret_value())
        return secret


class LogSettings(_Section):
    """Logs, always on stderr."""

    format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal, else JSON lines")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level shown")


class Settings(_Section):
    """All of Penstock's settings."""

    api_keys: tuple[SecretStr, ...] = Field(
        (), description="keys clients may use as bearer token, comma-separated; 8 characters or more"
    )
    data_dir: Path | None = Field(None, description="where `up` keeps its server's data; default: ~/.local/share/penstock")
    redis: RedisSettings = RedisSettings()
    gateway: GatewaySettings = GatewaySettings()
    queue: QueueSettings = QueueSettings()
    worker: WorkerSettings = WorkerSettings()
    autoscaler: AutoscalerSettings = AutoscalerSettings()
    agent: AgentSettings = AgentSettings()
    webhook: WebhookSettings = WebhookSettings()
    log: LogSettings = LogSettings()

    @field_validator("api_keys")
    @classmethod
    def _are_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(keys, 1):
            text = key.get_secret_value()
            if len(text) < _LEAST_KEY_CHARACTERS:
                raise ValueError(f"key {number} is shorter than {_LEAST_KEY_CHARACTERS} characters")
            if not _KEY.fullmatch(text):
                raise ValueError(f"key {number} holds something else than printable ASCII, or a space or a comma")
        return keys
