"""Workers as containers of one Docker engine. What runs is known by its labels, so a new autoscaler finds all of it.

Never here: the engine's API (docker_api.py), how many workers there should be.
"""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from autoscaler.launchers.base import Exit, Restarts
from autoscaler.launchers.docker_api import DockerApi
from autoscaler.launchers.fence import Fence
from autoscaler.launchers.variables import worker_variables
from dispatch.errors import PenstockError
from dispatch.scaling import Launch, LaunchReport, LaunchState, Orders
from dispatch.settings import Settings

_GROUP, _POOL, _LAUNCH, _EPOCH, _GPUS, _WORKER, _NEED = (
    f"penstock.{word}" for word in ("group", "pool", "launch", "epoch", "gpus", "worker", "need-bytes")
)
_LAST_LINES = 10
_AGAIN_S = 10.0
"""How long a container that could not be made is left alone."""
_CACHE = ("penstock-models", "/home/penstock/.cache/huggingface")
_PASSED_ON = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")
_SIGNALLED = 128
_log = logging.getLogger("penstock.autoscaler")


@dataclass(slots=True)
class _Life:
    """What is known of a container beyond what the engine lists."""

    restarts: Restarts = field(default_factory=Restarts)
    exits: int = 0
    finished_at: str = ""
    start_at_s: float | None = None  # when it is started again; None: it is not
    kill_at_s: float | None = None  # when a container told to end is killed
    error: str = ""
    last_words: tuple[str, ...] = ()
    pid: int = 0
    since_ms: int = 0


class DockerLauncher:
    """See the module's docstring. `now_s` is a steady clock."""

    names_itself = False

    def __init__(
        self,
        settings: Settings,
        *,
        environment: Mapping[str, str] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._group = settings.autoscaler.group
        self._environment = os.environ if environment is None else environment
        self._api = DockerApi(settings.autoscaler.docker_host)
        self._grace_s = settings.worker.drain_timeout_s + settings.autoscaler.kill_after_s
        self._now_s = now_s
        self._fence = Fence()
        self._lives: dict[str, _Life] = {}
        self._refused: dict[str, tuple[LaunchReport, float]] = {}
        self._wanted: Mapping[str, Launch] | None = None

    async def apply(self, orders: Orders) -> None:
        found = await self._containers()
        self._fence.check(orders, seen=max((int(c["Labels"].get(_EPOCH, 0)) for c in found.values()), default=0))
        self._wanted = orders.launches()
        self._forget(found)
        await self._look_at(found)
        for name, container in found.items():
            if name not in self._wanted:
                await self._end(name, container)
            elif self._is_due(name, container):
                await self._start(name, container["Id"])
        for name, launch in self._wanted.items():
            if name not in found and self._may_try(name):
                await self._make(launch, orders.epoch, found)

    async def reports(self) -> Mapping[str, LaunchReport]:
        found = await self._containers()
        await self._look_at(found)
        refused = {launch: report for launch, (report, _) in self._refused.items() if launch not in found}
        return refused | {launch: self._report(launch, container) for launch, container in found.items()}

    async def unplaceable(self, pool: str, need_bytes: int) -> str:
        """Only the engine knows, and it tells when it is asked to make a container: the last refusal stands until one is made."""
        return next((report.error for report, _ in self._refused.values() if report.pool == pool), "")

    async def close(self) -> None:
        await self._api.close()

    # ---- what is there

    async def _containers(self) -> dict[str, dict[str, Any]]:
        listed = await self._api.containers({_GROUP: self._group})
        return {c["Labels"][_LAUNCH]: c for c in listed if _LAUNCH in c["Labels"]}

    def _forget(self, found: Mapping[str, Any]) -> None:
        assert self._wanted is not None
        self._lives = {launch: life for launch, life in self._lives.items() if launch in found}
        self._refused = {launch: told for launch, told in self._refused.items() if launch in self._wanted}

    async def _look_at(self, found: Mapping[str, dict[str, Any]]) -> None:
        """Learn when each was started, and of each end once."""
        for launch, container in found.items():
            life = self._lives.setdefault(launch, _Life())
            ended = container["State"] in ("exited", "dead")
            if not ended and life.pid:
                continue
            details = await self._api.inspect(container["Id"])
            if details is None:
                continue
            state = details["State"]
            life.since_ms = int(_moment_s(state["StartedAt"]) * 1000)
            life.pid = state["Pid"]
            if ended and state["FinishedAt"] != life.finished_at and (self._wanted is None or launch in self._wanted):
                await self._learn_end(launch, container["Id"], life, state)

    async def _learn_end(self, launch: str, container: str, life: _Life, state: Mapping[str, Any]) -> None:
        code = int(state["ExitCode"])
        lived_s = max(0.0, _moment_s(state["FinishedAt"]) - _moment_s(state["StartedAt"]))
        end = Exit(launch, 0, _SIGNALLED - code if code > _SIGNALLED else code, lived_s)
        life.finished_at = state["FinishedAt"]
        life.exits += 1
        life.restarts = life.restarts.after(end)
        delay_s = life.restarts.delay_s(end)
        life.start_at_s = None if delay_s is None else self._now_s() + delay_s
        why = " (out of memory)" if state.get("OOMKilled") else f": {state['Error']}" if state.get("Error") else ""
        life.error = f"{end}{why}"
        life.last_words = await self._api.last_words(container, _LAST_LINES)

    def _report(self, launch: str, container: Mapping[str, Any]) -> LaunchReport:
        life = self._lives.get(launch, _Life())
        labels = container["Labels"]
        return LaunchReport(
            id=launch,
            pool=labels.get(_POOL, ""),
            state=self._state(launch, container["State"], life),
            host=self._api.name,
            pid=life.pid,
            since_ms=life.since_ms,
            exits=life.exits,
            error=life.error,
            last_words=life.last_words,
            worker=json.loads(labels.get(_WORKER, "{}")),
            need_bytes=int(labels.get(_NEED, 0)),
        )

    def _state(self, launch: str, state: str, life: _Life) -> LaunchState:
        ended = state in ("exited", "dead", "removing")
        if self._wanted is not None and launch not in self._wanted:
            return LaunchState.GONE if ended else LaunchState.STOPPING
        if ended:
            return LaunchState.BACKOFF if life.start_at_s is not None else LaunchState.CRASH_LOOP
        return LaunchState.STARTING if state == "created" else LaunchState.RUNNING

    # ---- hands

    def _may_try(self, launch: str) -> bool:
        return launch not in self._refused or self._refused[launch][1] <= self._now_s()

    def _is_due(self, launch: str, container: Mapping[str, Any]) -> bool:
        if container["State"] == "created":
            return self._may_try(launch)  # whoever made it died before the start, or the start was refused
        due_s = self._lives[launch].start_at_s
        return container["State"] in ("exited", "dead") and due_s is not None and due_s <= self._now_s()

    async def _make(self, launch: Launch, epoch: int, found: dict[str, dict[str, Any]]) -> None:
        gpus = self._gpus(found)
        try:
            name = f"penstock-{self._group}-{launch.id}".replace("@", "-")
            body = self._body(launch, epoch, gpus)
            container = await self._api.create(name, body)
        except PenstockError as error:
            self._note_refusal(launch.id, launch.pool, error)
            return
        self._refused.pop(launch.id, None)
        if container is not None:  # else someone just made it: seen at the next tick
            # So that the next one of this tick counts it.
            found[launch.id] = {"Id": container, "State": "created", "Labels": body["Labels"]}
            await self._start(launch.id, container)

    async def _start(self, launch: str, container: str) -> None:
        life = self._lives.setdefault(launch, _Life())
        life.pid = 0
        assert self._wanted is not None
        try:
            await self._api.start(container)
        except PenstockError as error:
            self._note_refusal(launch, self._wanted[launch].pool, error)
            return
        self._refused.pop(launch, None)
        life.start_at_s = None

    def _note_refusal(self, launch: str, pool: str, error: PenstockError) -> None:
        report = LaunchReport(launch, pool, LaunchState.REFUSED, host=self._api.name, error=error.message)
        if launch not in self._refused:
            _log.warning("a container could not be started", extra={"pool": pool, "launch": launch, "error": error.message})
        self._refused[launch] = (report, self._now_s() + _AGAIN_S)

    async def _end(self, launch: str, container: Mapping[str, Any]) -> None:
        """SIGTERM is the drain; a kill if it takes too long. Removed once it has ended."""
        if container["State"] in ("exited", "created", "dead"):
            await self._api.remove(container["Id"])
            return
        life = self._lives[launch]
        if life.kill_at_s is None:
            life.kill_at_s = self._now_s() + self._grace_s
            await self._api.signal(container["Id"], "SIGTERM")
        elif self._now_s() >= life.kill_at_s:
            await self._api.signal(container["Id"], "SIGKILL")

    def _gpus(self, found: Mapping[str, dict[str, Any]]) -> str:
        choice = self._settings.autoscaler.docker_gpus.strip().lower()
        if choice in ("all", "none"):
            return choice
        ids = [part.strip() for part in self._settings.autoscaler.docker_gpus.split(",") if part.strip()]
        taken = Counter(container["Labels"].get(_GPUS) for container in found.values())
        return min(ids, key=lambda gpu: taken[gpu], default="none")

    def _body(self, launch: Launch, epoch: int, gpus: str) -> dict[str, Any]:
        variables = worker_variables(self._settings, launch)
        variables |= {name: self._environment[name] for name in _PASSED_ON if self._environment.get(name)}
        host: dict[str, Any] = {
            "RestartPolicy": {"Name": "no"},
            "Mounts": [{"Type": "volume", "Source": _CACHE[0], "Target": _CACHE[1]}],
        }
        if self._settings.autoscaler.docker_network:
            host["NetworkMode"] = self._settings.autoscaler.docker_network
        if gpus != "none":
            which: dict[str, Any] = {"Count": -1} if gpus == "all" else {"DeviceIDs": [gpus]}
            host["DeviceRequests"] = [{"Driver": "nvidia", "Capabilities": [["gpu"]], **which}]
        return {
            "Image": self._settings.autoscaler.image,
            "Env": [f"{name}={value}" for name, value in variables.items()],
            "Labels": {
                _GROUP: self._group,
                _POOL: launch.pool,
                _LAUNCH: launch.id,
                _EPOCH: str(epoch),
                _GPUS: gpus,
                _WORKER: json.dumps(dict(launch.worker)),
                _NEED: str(launch.need_bytes),
            },
            "StopTimeout": int(self._grace_s),
            "HostConfig": host,
        }


def _moment_s(text: str) -> float:
    """RFC 3339 with nanoseconds, as the engine writes it; its zero time is 0."""
    if text.startswith("0001"):
        return 0.0
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + float(f"0.{fraction or 0}")
