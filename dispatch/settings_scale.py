"""The settings of the autoscaler, its pools, the host agents and webhooks: names, types, defaults and meaning.

Never here: what the values cause, and where they come from (configuration.py).
"""

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from dispatch.scaling import LauncherName, ScalingPolicy
from dispatch.signing import secret_bytes

_LEAST_SECRET_CHARACTERS = 16
_DAY = "(?:mon|tue|wed|thu|fri|sat|sun)"
_TIME = "(?:[01]?[0-9]|2[0-3]):[0-5][0-9]"
# autoscaler/pool_policy.py reads what this lets through.
_FLOOR = re.compile(
    rf"(?:{_DAY}(?:-{_DAY})?(?:,{_DAY}(?:-{_DAY})?)* +)?({_TIME}) *- *({_TIME}|24:00) +[0-9]{{1,5}}", re.IGNORECASE
)
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"


class Section(BaseModel):
    """A part of the settings: frozen, and it takes no name that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolSettings(Section):
    """One pool: the workers of one model that are scaled together."""

    model: str | None = Field(None, description="what its workers run; default: worker.model")
    launcher: LauncherName | None = Field(None, description="who starts its workers; default: autoscaler.launcher")
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


class AutoscalerSettings(Section):
    """The autoscaler, its launchers and the host agents."""

    group: str = Field("main", pattern=_NAME, description="autoscalers of one group share its pools; one of them leads")
    launcher: LauncherName = Field(
        LauncherName.AGENTS, description="who starts workers, where a pool does not say: agents, docker, ..."
    )
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


class AgentSettings(Section):
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


class WebhookSettings(Section):
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
