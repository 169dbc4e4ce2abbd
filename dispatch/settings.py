"""The settings: their names, types, defaults and meaning. The only place for them, with settings_scale.py for those of scaling.

Order: flag > `PENSTOCK_` environment > `.env` > `penstock.toml` > default. Unknown keys are errors with a suggestion.
Never here: what the values cause.
"""

import re
import urllib.parse
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator

from dispatch.errors import PenstockError
from dispatch.keys import check_model_name
from dispatch.rules import QueueRules
from dispatch.scores import DEFAULT, Strategy
from dispatch.settings_scale import AgentSettings, AutoscalerSettings, Section, WebhookSettings

_LEAST_KEY_CHARACTERS = 8
# What an Authorization header and a comma-separated variable carry unchanged.
_KEY = re.compile(r"[!-+\--~]*")


class Durability(StrEnum):
    """What an acknowledged request outlives. docs/durability.md has the table."""

    MEMORY = "memory"
    AOF = "aof"
    AOF_ALWAYS = "aof-always"
    REPLICATED = "replicated"


_REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")


class RedisSettings(Section):
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


class GatewaySettings(Section):
    """The HTTP gateway."""

    host: str = Field("127.0.0.1", description="address to listen on; a non-loopback one needs api_keys")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; `up` takes the next free one if the default is taken")
    max_body_bytes: int = Field(2 * 1024 * 1024, ge=1024, description="largest request body")
    ping_s: float = Field(15.0, gt=0, description="silence on a stream before a ping comment")
    reader_buffer_bytes: int = Field(262_144, ge=4096, description="output a slow reader may leave unread before it is cut")
    write_timeout_s: float = Field(15.0, gt=0, description="how long one write to a slow reader may take")
    drain_timeout_s: float = Field(20.0, ge=0, description="how long open streams may go on after SIGTERM")


class QueueSettings(Section):
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


class WorkerSettings(Section):
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


class LogSettings(Section):
    """Logs, always on stderr."""

    format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal, else JSON lines")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level shown")


class Settings(Section):
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
