"""The agent: what should run on this host, and what does. Level-triggered: it compares, again and again.

Its workers outlive it: after a restart they are taken over. Never here: RQ (jobs), which orders count (obeying.py), starting
and ending (tending.py), reports and the state file (telling.py).
"""

import asyncio
import logging
import sys
import time
from contextlib import suppress

from autoscaler.agent.devices import Devices
from autoscaler.agent.obeying import REWOUND_S, Obedience, Verdict
from autoscaler.agent.processes import workers_of
from autoscaler.agent.state import StateFile
from autoscaler.agent.telling import Telling
from autoscaler.agent.tended import HALF_OPEN_S
from autoscaler.agent.tending import Tending
from autoscaler.launchers.aftermath import Aftermath
from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT
from dispatch.scale_store import ScaleStore
from dispatch.settings import Settings
from dispatch.tasks import cancelled

_DOUBT_POLL_S = 1.0
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
        rewound_s: float = REWOUND_S,
    ) -> None:
        self.host = host
        self._settings = settings
        self._store = store
        self._file = file
        self._obedience = Obedience(rewound_s)
        command = command or [sys.executable, "-m", "penstock", "worker"]
        self._tending = Tending(settings, host, aftermath, file.logs, devices, command, half_open_s)
        self._telling = Telling(settings, host, store, file, devices, self._tending, self._obedience)
        self._tending.note = self._telling.save
        self._rung = asyncio.Event()
        self._away = False

    @property
    def epoch(self) -> int:
        """Of the newest orders it carried out."""
        return self._obedience.epoch

    def ring(self) -> None:
        """Look at the orders now."""
        self._rung.set()
        self._tending.wake.set()

    async def run(self) -> None:
        """For ever. When it is cancelled the workers go on."""
        await self._telling.until_free()
        self.take_over()
        reporting = asyncio.create_task(self._telling.run(), name="report")
        poll_at = 0.0
        try:
            while True:
                self._tending.wake.clear()
                if self._rung.is_set() or time.monotonic() >= poll_at:
                    self._rung.clear()
                    await self._look()
                    every_s = self._settings.agent.poll_s
                    poll_at = time.monotonic() + (min(_DOUBT_POLL_S, every_s) if self._obedience.doubts else every_s)
                due_at = None
                if not self._telling.other:
                    self._tending.carry_out()
                    self._telling.save()
                    due_at = self._tending.next_due()
                await self._sleep(min(poll_at, due_at or poll_at))
        finally:
            await cancelled(reporting, *self._tending.tasks)
            self._tending.close()

    async def stop_workers(self) -> None:
        """End all that run here, and return when they are gone."""
        self.take_over()
        self._tending.want({})
        while True:
            self._tending.wake.clear()
            self._tending.carry_out()
            self._telling.save()
            if not self._tending.tended:
                break
            await self._sleep(self._tending.next_due() or time.monotonic())
        if self._tending.tasks:
            await asyncio.wait(self._tending.tasks)
        await self._telling.withdraw()

    def take_over(self) -> None:
        """The workers that ran when the last agent ended: those it noted, and any that it had no time to note."""
        state = self._file.load()
        running = workers_of(self.host)
        self._obedience.remember(state.epoch, state.trust)
        for kept in state.launches:
            found = running.pop(kept.launch.id, None)
            self._tending.resume(kept, kept.process if kept.process and kept.process.lives() else found)
        for name, process in running.items():
            self._tending.find(name, process)
        self._tending.keep_all()

    async def _look(self) -> None:
        try:
            await self._telling.tell()
            if self._telling.other:
                return
            orders, history = await self._store.orders_in(self._settings.agent.group)
            leadership = await self._store.leader(self._settings.agent.group)
        except (STORE_FAULT, PenstockError) as error:
            if not self._away:
                _log.warning("cannot read the orders; what runs goes on", extra={"why": str(error)})
            self._away = True
            return
        self._away = False
        ordered = {name: launch for name, launch in orders.launches().items() if launch.host == self.host}
        lacking, before, doubted = self._tending.runs_unnamed_in(ordered), self.epoch, self._obedience.doubts
        verdict = self._obedience.judge(orders, history, leadership, lacking=lacking, now=time.monotonic())
        if verdict is Verdict.WHOLLY:
            if orders.epoch < before:
                _log.warning("follow a younger count of epochs", extra={"epoch": orders.epoch, "last": before})
            self._tending.want(ordered)
        elif verdict is Verdict.KEEPING:
            if not doubted:
                _log.warning("keep what new orders do not name, until who gave them has led on", extra={"epoch": orders.epoch})
            self._tending.want({**self._tending.running(), **ordered})
        elif orders.epoch:
            _log.warning("refuse orders of an older epoch", extra={"epoch": orders.epoch, "last": self.epoch})

    async def _sleep(self, until: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._tending.wake.wait(), max(0.0, until - time.monotonic()))
