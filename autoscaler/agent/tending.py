"""The workers of one host: started, placed, ended, started again, each by what is wanted and what became of it.

Never here: which are wanted (agent.py), what is told of them (telling.py), /proc (processes.py), the circuit (tended.py).
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoscaler.agent.devices import Claim, Devices, choose_gpu
from autoscaler.agent.processes import HOST, Identity, Watch, kill_session, start
from autoscaler.agent.state import Kept
from autoscaler.agent.tended import Circuits, Tended, UnseenExit, check, environment_of, log_name, now_ms, tended_again
from autoscaler.launchers.aftermath import Aftermath
from autoscaler.launchers.base import HEALTHY_LIFE_S, Exit
from autoscaler.launchers.variables import worker_variables
from autoscaler.logs import bound, tail
from dispatch.errors import PenstockError
from dispatch.reports import GpuStatus
from dispatch.scaling import Launch, LaunchState
from dispatch.settings import Settings

_SETTLE_S = 30.0
_LOGS_KEPT = 50
_log = logging.getLogger("penstock.agent")


class Tending:
    """See the module's docstring. `command` starts a worker; `changed` is set when there is something to tell; `note`
    writes down at once who was started."""

    def __init__(
        self,
        settings: Settings,
        host: str,
        aftermath: Aftermath,
        logs: Path,
        devices: Devices,
        command: list[str],
        half_open_s: float,
    ) -> None:
        self.tended: dict[str, Tended] = {}
        self.wanted: dict[str, Launch] = {}
        self.wake = asyncio.Event()
        self.changed = asyncio.Event()
        self.note: Callable[[], None] = lambda: None
        self._settings = settings
        self._host = host
        self._aftermath = aftermath
        self._logs = logs
        self._devices = devices
        self._command = command
        self._circuits = Circuits(half_open_s)
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        """What is still told to Redis of those that ended."""
        return self._tasks

    def want(self, launches: Mapping[str, Launch]) -> None:
        """These and no others."""
        self.wanted = dict(launches)
        for name, launch in self.wanted.items():
            if name in self.tended:
                # A leader that adopted it may not know how it was started.
                known = self.tended[name].launch
                worker, need_bytes = launch.worker or known.worker, launch.need_bytes or known.need_bytes
                self.tended[name].launch = replace(launch, worker=worker, need_bytes=need_bytes)
            else:
                self.tended[name] = Tended(launch, since_ms=now_ms())
        for tended in self.tended.values():
            bound(self.log_of(tended))

    def next_due(self) -> float | None:
        """When something must be done, if nothing happens before (monotonic)."""
        return min((t.due_at for t in self.tended.values() if t.due_at and (t.watch or t.launch.pool)), default=None)

    def runs_unnamed_in(self, launches: Mapping[str, Launch]) -> bool:
        """Whether something runs here, and should so far, that these do not name."""
        return any(t.watch is not None and name in self.wanted and name not in launches for name, t in self.tended.items())

    def running(self) -> dict[str, Launch]:
        """What runs and should so far."""
        return {name: self.tended[name].launch for name in self.wanted if name in self.tended and self.tended[name].watch}

    # ---- taking over

    def resume(self, kept: Kept, process: Identity | None) -> None:
        """One that the last agent noted, and its process if that lives."""
        tended = self.tended[kept.launch.id] = tended_again(kept)
        if process is not None and self._watch(tended, process):
            tended.state = LaunchState.STOPPING if kept.stopping else LaunchState.RUNNING
            tended.due_at = 0.0
            _log.info("take over a worker", extra={"launch": kept.launch.id, "pid": process.pid})
        elif kept.process is not None:
            self._ended(tended, kept.process, None)

    def find(self, name: str, process: Identity) -> None:
        """One that runs and was not noted."""
        tended = self.tended[name] = Tended(Launch(name, ""), since_ms=now_ms())
        if self._watch(tended, process):
            tended.state = LaunchState.RUNNING
            _log.warning("take over a worker that was not noted", extra={"launch": name, "pid": process.pid})

    def keep_all(self) -> None:
        """Until the first look, what runs is what should."""
        self.wanted = {t.launch.id: t.launch for t in self.tended.values() if t.state is not LaunchState.STOPPING}

    # ---- one round

    def carry_out(self) -> None:
        """Start, end, try again, kill."""
        now = time.monotonic()
        for name, tended in list(self.tended.items()):
            if name not in self.wanted or tended.state is LaunchState.STOPPING:
                self._end(tended, now)
            elif tended.watch is not None:
                if tended.trial and now - tended.started_at >= HEALTHY_LIFE_S:
                    self._note_health(tended, now)
            elif tended.launch.pool and (tended.state in (LaunchState.STARTING, LaunchState.REFUSED) or now >= tended.due_at):
                self._start(tended, now)

    def _start(self, tended: Tended, now: float) -> None:
        blocked = self._circuits.blocks(tended.kind, now)
        if blocked is not None:
            tended.due_at, why = blocked
            tended.state, tended.error = LaunchState.CRASH_LOOP, tended.error or why
            return
        try:
            check(tended.launch)
            gpu = self._place(tended)
            variables = {**worker_variables(self._settings, tended.launch), HOST.decode(): self._host}
            environment = environment_of(os.environ, variables, gpu)
            process = start(self._command, environment, self.log_of(tended))
        except (PenstockError, OSError, ValueError) as error:
            tended.state, tended.due_at = LaunchState.REFUSED, 0.0
            tended.error = error.message if isinstance(error, PenstockError) else f"It cannot be started: {error}."
            return
        tended.gpu, tended.state, tended.due_at = gpu, LaunchState.RUNNING, 0.0
        tended.since_ms, tended.started_at = now_ms(), now
        # A child of ours keeps its pid until we reap it.
        self._watch(tended, process)
        tended.trial = tended.kind in self._circuits
        if tended.trial:
            tended.due_at = now + HEALTHY_LIFE_S
        self.note()
        self.changed.set()
        fields = {"launch": tended.launch.id, "pool": tended.launch.pool, "pid": process.pid, "gpu": gpu}
        _log.info("start a worker", extra=fields)

    def _place(self, tended: Tended) -> str:
        """The GPU it gets, "" on a host without. Raises PenstockError if there is no place."""
        others = [t for t in self.tended.values() if t.watch is not None and t is not tended]
        most, need = self._settings.agent.max_workers, tended.launch.need_bytes
        gpus = self.gpus()
        most = most if most is not None else None if gpus else 1
        if most is not None and len(others) >= most:
            raise PenstockError("unschedulable", f"{self._host} runs {len(others)} workers, the most it may.")
        if not gpus:
            return ""
        counts = {gpu.uuid: sum(t.gpu == gpu.uuid for t in others) for gpu in gpus}
        chosen = choose_gpu(gpus, counts, need)
        if chosen is None:
            best = max(gpu.free_bytes for gpu in gpus)
            raise PenstockError("unschedulable", f"It needs {need} bytes on a GPU; {self._host} has {best} free on its best one.")
        return chosen.uuid

    def gpus(self) -> tuple[GpuStatus, ...]:
        """The host's GPUs, less what was promised on them and does not show yet."""
        now = time.monotonic()
        return self._devices.gpus(
            Claim(t.gpu, t.launch.need_bytes, now - t.started_at > _SETTLE_S) for t in self.tended.values() if t.watch
        )

    def _end(self, tended: Tended, now: float) -> None:
        """A drain first; a kill of all its session when that takes too long."""
        if tended.watch is None:
            self._forget(tended)
        elif tended.state is not LaunchState.STOPPING:
            tended.state, tended.due_at = LaunchState.STOPPING, now + self._patience_s(tended)
            tended.watch.send(signal.SIGTERM)
            self.changed.set()
            _log.info("end a worker", extra={"launch": tended.launch.id, "pid": tended.watch.process.pid})
        elif not tended.due_at:  # taken over in the middle of it
            tended.due_at = now + self._patience_s(tended)
            tended.watch.send(signal.SIGTERM)
        elif now >= tended.due_at:
            killed = kill_session(tended.watch.process.pid, tended.launch.id)
            tended.watch.send(signal.SIGKILL)
            tended.due_at = now + 1.0
            _log.warning("kill a worker that did not end", extra={"launch": tended.launch.id, "processes": killed})

    def _patience_s(self, tended: Tended) -> float:
        try:
            drain_s = float(tended.launch.worker.get("drain_timeout_s", self._settings.worker.drain_timeout_s))
        except ValueError:
            drain_s = self._settings.worker.drain_timeout_s
        return drain_s + self._settings.autoscaler.kill_after_s

    def _forget(self, tended: Tended) -> None:
        del self.tended[tended.launch.id]
        self.changed.set()
        logs = sorted(self._logs.glob("*.log"), key=_changed_at)
        kept = {self.log_of(t) for t in self.tended.values()}
        for old in [log for log in logs if log not in kept][:-_LOGS_KEPT]:
            with suppress(OSError):
                old.unlink()

    # ---- ends

    def _watch(self, tended: Tended, process: Identity) -> bool:
        try:
            tended.watch = Watch(process, lambda code: self._ended(tended, process, code))
        except ProcessLookupError:
            return False
        return True

    def _ended(self, tended: Tended, process: Identity, code: int | None) -> None:
        tended.watch = None
        lived_s = max(0.0, (now_ms() - tended.since_ms) / 1000)
        # No code: not our child. It counts as killed by somebody, so nothing it held becomes a suspect.
        end = (
            Exit(tended.launch.id, process.pid, code, lived_s)
            if code is not None
            else UnseenExit(tended.launch.id, process.pid, -signal.SIGKILL, lived_s)
        )
        self._spawn(self._aftermath.of(end))
        kill_session(process.pid, tended.launch.id)
        self.changed.set()
        self.wake.set()
        if tended.state is LaunchState.STOPPING:
            if tended.launch.id in self.wanted:  # ordered again while it ended
                tended.state, tended.due_at = LaunchState.STARTING, 0.0
            return
        tended.exits += 1
        tended.error, tended.last_words = str(end), tail(self.log_of(tended))
        if tended.launch.pool:
            self._again(tended, end)
        else:  # not noted: what it was only the orders can tell
            tended.state, tended.due_at = LaunchState.BACKOFF, 0.0

    def _again(self, tended: Tended, end: Exit) -> None:
        now = time.monotonic()
        tended.restarts = tended.restarts.after(end)
        delay_s = tended.restarts.delay_s(end)
        if delay_s is None or tended.kind in self._circuits:
            tended.state = LaunchState.CRASH_LOOP
            tended.due_at = self._circuits.open(tended.kind, f"Others like it crashed, at last: {end}.", now)
        else:
            tended.state, tended.due_at = LaunchState.BACKOFF, now + delay_s
        fields = {"launch": tended.launch.id, "pool": tended.launch.pool, "why": str(end), "again_in_s": delay_s}
        _log.warning("lose a worker", extra=fields)

    def _note_health(self, tended: Tended, now: float) -> None:
        tended.due_at, tended.trial = 0.0, False
        self._circuits.healthy(tended.kind)
        for other in self.tended.values():
            if other.state is LaunchState.CRASH_LOOP and other.kind == tended.kind:
                other.due_at = now
        self.wake.set()

    # ---- small things

    def close(self) -> None:
        """Look no more; what runs goes on."""
        for tended in self.tended.values():
            if tended.watch:
                tended.watch.close()

    def log_of(self, tended: Tended) -> Path:
        """Where its worker writes."""
        return self._logs / log_name(tended.launch.id)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
