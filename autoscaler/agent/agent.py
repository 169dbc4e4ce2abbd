"""The agent: what should run on this host, and what does. Level-triggered: it compares, again and again.

Its workers outlive it: after a restart they are taken over. Never here: RQ (jobs), /proc (processes.py), the circuit (tended.py).
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoscaler.agent.devices import Claim, Devices, cached_models, choose_gpu
from autoscaler.agent.processes import HOST, Identity, Watch, kill_session, start, tail, workers_of
from autoscaler.agent.state import Kept, State, StateFile
from autoscaler.agent.tended import HALF_OPEN_S, Circuits, Tended, UnseenExit, environment_of
from autoscaler.jobs.payload import JobRefused, Payload
from autoscaler.launchers.aftermath import Aftermath
from autoscaler.launchers.base import HEALTHY_LIFE_S, Exit, Restarts
from autoscaler.launchers.variables import worker_variables
from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT
from dispatch.reports import GpuStatus
from dispatch.scale_store import ScaleStore
from dispatch.scaling import HostReport, Launch, LaunchState, Orders
from dispatch.settings import Settings
from dispatch.tasks import cancelled

AS_MEMORY_ALLOWS = -1
"""A host's `most_workers` where only its GPUs' memory bounds them."""

REPORT_TTL_S = 5.0
_REWOUND_S = 10.0
_SETTLE_S = 30.0
_LOGS_KEPT = 50
_log = logging.getLogger("penstock.agent")


class Agent:
    """One host's agent. `command` starts a worker; `half_open_s` and `rewound_s` are for tests."""

    def __init__(
        self,
        settings: Settings,
        host: str,
        store: ScaleStore,
        aftermath: Aftermath,
        file: StateFile,
        devices: Devices,
        *,
        command: list[str] | None = None,
        half_open_s: float = HALF_OPEN_S,
        rewound_s: float = _REWOUND_S,
    ) -> None:
        self.host = host
        self.epoch = 0
        self._settings = settings
        self._store = store
        self._aftermath = aftermath
        self._file = file
        self._devices = devices
        self._command = command or [sys.executable, "-m", "penstock", "worker"]
        self._circuits = Circuits(half_open_s)
        self._rewound_s = rewound_s
        self._rewound_since: float | None = None
        self._tended: dict[str, Tended] = {}
        self._wanted: dict[str, Launch] = {}
        self._rung = asyncio.Event()
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._saved: State | None = None
        self._away = False

    def ring(self) -> None:
        """Look at the orders now."""
        self._rung.set()
        self._wake.set()

    async def run(self) -> None:
        """For ever. When it is cancelled the workers go on."""
        self.take_over()
        reporting = asyncio.create_task(self._report(), name="report")
        poll_at = 0.0
        try:
            while True:
                self._wake.clear()
                if self._rung.is_set() or time.monotonic() >= poll_at:
                    self._rung.clear()
                    poll_at = time.monotonic() + self._settings.agent.poll_s
                    await self._look()
                self._carry_out()
                await self._sleep(min([poll_at, *(t.due_at for t in self._tended.values() if t.due_at)]))
        finally:
            await cancelled(reporting, *self._tasks)
            for tended in self._tended.values():
                if tended.watch:
                    tended.watch.close()

    async def stop_workers(self) -> None:
        """End all that run here, and return when they are gone."""
        self.take_over()
        self._wanted = {}
        while True:
            self._wake.clear()
            self._carry_out()
            if not self._tended:
                break
            await self._sleep(min(t.due_at for t in self._tended.values()))
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._store.withdraw(self.host)

    # ---- what should be

    async def _look(self) -> None:
        try:
            orders = await self._store.orders(self._settings.agent.group)
            if not await self._obeys(orders):
                return
        except (STORE_FAULT, PenstockError) as error:
            if not self._away:
                _log.warning("cannot read the orders; what runs goes on", extra={"why": str(error)})
            self._away = True
            return
        self._away = False
        self._wanted = {name: launch for name, launch in orders.launches().items() if launch.host == self.host}
        for name, launch in self._wanted.items():
            if name in self._tended:
                self._tended[name].launch = launch
            else:
                self._tended[name] = Tended(launch, since_ms=_now_ms())

    async def _obeys(self, orders: Orders) -> bool:
        """Whether these orders count. Older ones come of a leader that was replaced, or of a Redis that lost its memory: then
        they count once the one who gave them has led on for a while."""
        if orders.epoch >= self.epoch:
            self.epoch, self._rewound_since = orders.epoch, None
            return orders.epoch > 0
        leadership = await self._store.leader(self._settings.agent.group)
        if not leadership.leads or leadership.epoch != orders.epoch:
            self._rewound_since = None
        elif self._rewound_since is None:
            self._rewound_since = time.monotonic()
        elif time.monotonic() - self._rewound_since >= self._rewound_s:
            _log.warning("follow a younger count of epochs", extra={"epoch": orders.epoch, "last": self.epoch})
            self.epoch, self._rewound_since = orders.epoch, None
            return True
        _log.warning("refuse orders of an older epoch", extra={"epoch": orders.epoch, "last": self.epoch})
        return False

    # ---- what is

    def take_over(self) -> None:
        """The workers that ran when the last agent ended: those it noted, and any that it had no time to note."""
        state = self._file.load()
        self.epoch = state.epoch
        running = workers_of(self.host)
        for kept in state.launches:
            tended = self._tended[kept.launch.id] = _tended_again(kept)
            process = kept.process if kept.process and kept.process.lives() else running.get(kept.launch.id)
            running.pop(kept.launch.id, None)
            if process is not None and self._watch(tended, process):
                tended.state = LaunchState.STOPPING if kept.stopping else LaunchState.RUNNING
                tended.due_at = 0.0
                _log.info("take over a worker", extra={"launch": kept.launch.id, "pid": process.pid})
            elif kept.process is not None:
                self._ended(tended, kept.process, None)
        for name, process in running.items():
            tended = self._tended[name] = Tended(Launch(name, ""), since_ms=_now_ms())
            if self._watch(tended, process):
                tended.state = LaunchState.RUNNING
                _log.warning("take over a worker that was not noted", extra={"launch": name, "pid": process.pid})
        # Until the first look, what runs is what should.
        self._wanted = {t.launch.id: t.launch for t in self._tended.values() if t.state is not LaunchState.STOPPING}

    def _carry_out(self) -> None:
        """One round: start, end, try again, kill."""
        now = time.monotonic()
        for name, tended in list(self._tended.items()):
            if name not in self._wanted or tended.state is LaunchState.STOPPING:
                self._end(tended, now)
            elif tended.watch is not None:
                if tended.trial and now - tended.started_at >= HEALTHY_LIFE_S:
                    self._note_health(tended, now)
            elif tended.launch.pool and (tended.state in (LaunchState.STARTING, LaunchState.REFUSED) or now >= tended.due_at):
                self._start(tended, now)
        self._save()

    def _start(self, tended: Tended, now: float) -> None:
        blocked = self._circuits.blocks(tended.kind, now)
        if blocked is not None:
            tended.due_at, why = blocked
            tended.state, tended.error = LaunchState.CRASH_LOOP, tended.error or why
            return
        try:
            gpu = self._place(tended)
            variables = {**worker_variables(self._settings, tended.launch), HOST.decode(): self.host}
            environment = environment_of(os.environ, variables, gpu)
            process = start(self._command, environment, self._log_of(tended))
        except (PenstockError, OSError) as error:
            tended.state, tended.due_at = LaunchState.REFUSED, 0.0
            tended.error = error.message if isinstance(error, PenstockError) else f"It cannot be started: {error}."
            return
        tended.gpu, tended.state, tended.due_at = gpu, LaunchState.RUNNING, 0.0
        tended.since_ms, tended.started_at = _now_ms(), now
        # A child of ours keeps its pid until we reap it.
        self._watch(tended, process)
        tended.trial = tended.kind in self._circuits
        if tended.trial:
            tended.due_at = now + HEALTHY_LIFE_S
        self._save()
        self._changed.set()
        fields = {"launch": tended.launch.id, "pool": tended.launch.pool, "pid": process.pid, "gpu": gpu}
        _log.info("start a worker", extra=fields)

    def _place(self, tended: Tended) -> str:
        """The GPU it gets, "" on a host without. Raises PenstockError if there is no place."""
        others = [t for t in self._tended.values() if t.watch is not None and t is not tended]
        most, need = self._settings.agent.max_workers, tended.launch.need_bytes
        gpus = self.gpus()
        most = most if most is not None else None if gpus else 1
        if most is not None and len(others) >= most:
            raise PenstockError("unschedulable", f"{self.host} runs {len(others)} workers, the most it may.")
        if not gpus:
            return ""
        counts = {gpu.uuid: sum(t.gpu == gpu.uuid for t in others) for gpu in gpus}
        chosen = choose_gpu(gpus, counts, need)
        if chosen is None:
            best = max(gpu.free_bytes for gpu in gpus)
            raise PenstockError("unschedulable", f"It needs {need} bytes on a GPU; {self.host} has {best} free on its best one.")
        return chosen.uuid

    def gpus(self) -> tuple[GpuStatus, ...]:
        """The host's GPUs, less what was promised on them and does not show yet."""
        now = time.monotonic()
        return self._devices.gpus(
            Claim(t.gpu, t.launch.need_bytes, now - t.started_at > _SETTLE_S) for t in self._tended.values() if t.watch
        )

    def _end(self, tended: Tended, now: float) -> None:
        """A drain first; a kill of all its session when that takes too long."""
        if tended.watch is None:
            self._forget(tended)
        elif tended.state is not LaunchState.STOPPING:
            tended.state, tended.due_at = LaunchState.STOPPING, now + self._patience_s(tended)
            tended.watch.send(signal.SIGTERM)
            self._changed.set()
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
        del self._tended[tended.launch.id]
        self._changed.set()
        logs = sorted(self._file.logs.glob("*.log"), key=_changed_at)
        kept = {self._log_of(t) for t in self._tended.values()}
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
        lived_s = max(0.0, (_now_ms() - tended.since_ms) / 1000)
        # No code: not our child. It counts as killed by somebody, so nothing it held becomes a suspect.
        end = (
            Exit(tended.launch.id, process.pid, code, lived_s)
            if code is not None
            else UnseenExit(tended.launch.id, process.pid, -signal.SIGKILL, lived_s)
        )
        self._spawn(self._aftermath.of(end))
        kill_session(process.pid, tended.launch.id)
        self._changed.set()
        self._wake.set()
        if tended.state is LaunchState.STOPPING:
            if tended.launch.id in self._wanted:  # ordered again while it ended
                tended.state, tended.due_at = LaunchState.STARTING, 0.0
            return
        tended.exits += 1
        tended.error, tended.last_words = str(end), tail(self._log_of(tended))
        self._again(tended, end)

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
        for other in self._tended.values():
            if other.state is LaunchState.CRASH_LOOP and other.kind == tended.kind:
                other.due_at = now
        self._wake.set()

    # ---- telling

    async def _report(self) -> None:
        while True:
            self._changed.clear()
            with suppress(STORE_FAULT):  # the orders' reader complains
                await self._store.announce(self._said(), int(REPORT_TTL_S * 1000 + self._settings.agent.report_s * 1000))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._settings.agent.report_s)

    def _said(self) -> HostReport:
        gpus, most = self.gpus(), self._settings.agent.max_workers
        return HostReport(
            host=self.host,
            agent=f"{self.host}-{os.getpid()}",
            seen_at_ms=_now_ms(),
            gpus=gpus,
            free_bytes=self._devices.host_free_bytes,
            cached_models=cached_models(os.environ),
            launches=tuple(tended.report(self.host) for tended in self._tended.values()),
            epoch=self.epoch,
            most_workers=most if most is not None else AS_MEMORY_ALLOWS if gpus else 1,
        )

    def _save(self) -> None:
        state = State(self.host, self.epoch, tuple(tended.kept() for tended in self._tended.values()))
        if state != self._saved:
            self._file.save(state)
            self._saved = state

    # ---- small things

    def _log_of(self, tended: Tended) -> Path:
        return self._file.logs / f"{tended.launch.id}.log"

    async def _sleep(self, until: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), max(0.0, until - time.monotonic()))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def reconcile_handler(agent: Agent, loop: asyncio.AbstractEventLoop) -> Callable[[Payload], Mapping[str, Any]]:
    """What the bell does, in the runner's thread."""

    def reconcile(payload: Payload) -> Mapping[str, Any]:
        if payload.host != agent.host:
            raise JobRefused("The job was not signed for this very host.")
        if payload.epoch < agent.epoch:
            raise JobRefused("The job speaks of orders older than those carried out.")
        loop.call_soon_threadsafe(agent.ring)
        return {"host": agent.host, "epoch": payload.epoch}

    return reconcile


def _tended_again(kept: Kept) -> Tended:
    now = time.monotonic()
    return Tended(
        launch=kept.launch,
        state=LaunchState.STOPPING if kept.stopping else LaunchState.CRASH_LOOP if kept.crash_loop else LaunchState.STARTING,
        gpu=kept.gpu,
        since_ms=kept.since_ms,
        started_at=now - max(0.0, (_now_ms() - kept.since_ms) / 1000),
        exits=kept.exits,
        restarts=Restarts(kept.failures),
        due_at=now + HALF_OPEN_S if kept.crash_loop else 0.0,
        error=kept.error,
        last_words=kept.last_words,
    )


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _now_ms() -> int:
    return int(time.time() * 1000)
