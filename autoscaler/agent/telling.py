"""What an agent says of its host, and notes for the next one; and whether the host's name is its own to speak for.

Never here: what should run (agent.py), what does (tending.py).
"""

import asyncio
import logging
import os
from contextlib import suppress

from autoscaler.agent.devices import Devices, cached_models
from autoscaler.agent.obeying import Obedience
from autoscaler.agent.state import State, StateFile
from autoscaler.agent.tended import now_ms
from autoscaler.agent.tending import Tending
from dispatch.faults import STORE_FAULT
from dispatch.scale_store import ScaleStore
from dispatch.scaling import HostReport
from dispatch.settings import Settings

AS_MEMORY_ALLOWS = -1
"""A host's `most_workers` where only its GPUs' memory bounds them."""

REPORT_TTL_S = 5.0
_log = logging.getLogger("penstock.agent")


class Telling:
    """See the module's docstring. `other`: the agent that speaks for a host of our name; "" if none does."""

    def __init__(
        self,
        settings: Settings,
        host: str,
        store: ScaleStore,
        file: StateFile,
        devices: Devices,
        tending: Tending,
        obedience: Obedience,
    ) -> None:
        self.other = ""
        self._settings = settings
        self._host = host
        self._store = store
        self._file = file
        self._devices = devices
        self._tending = tending
        self._obedience = obedience
        self._saved: State | None = None

    async def until_free(self) -> None:
        """Return when no other agent speaks for this name, or nobody knows."""
        with suppress(STORE_FAULT):
            while True:
                other = await self._store.host_agent(self._host)
                self._note("" if other == self._file.owner else other)
                if not self.other:
                    return
                await asyncio.sleep(self._settings.agent.report_s)

    async def tell(self) -> None:
        """Once. Raises what Redis raises."""
        self._note(await self._store.announce(self._said(), int(REPORT_TTL_S * 1000 + self._settings.agent.report_s * 1000)))

    async def run(self) -> None:
        """For ever: every `agent.report_s`, and when something changes."""
        while True:
            self._tending.changed.clear()
            with suppress(STORE_FAULT):  # the orders' reader complains
                await self.tell()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._tending.changed.wait(), self._settings.agent.report_s)

    async def withdraw(self) -> None:
        """The last word."""
        await self._store.withdraw(self._host, self._file.owner)

    def save(self) -> None:
        """For the next agent of this host."""
        launches = tuple(tended.kept() for tended in self._tending.tended.values())
        state = State(self._host, self._obedience.epoch, launches, self._obedience.trust)
        if state != self._saved:
            self._file.save(state)
            self._saved = state

    def _note(self, other: str) -> None:
        if other and not self.other:
            why = "Another agent speaks for a host of this name: nothing is started or ended here until its reports stop"
            hint = "Give each host a name of its own: agent.host."
            _log.error(why, extra={"host": self._host, "agent": self._file.owner, "other": other, "hint": hint})
        elif self.other and not other:
            _log.info("the name of this host is free", extra={"host": self._host, "agent": self._file.owner})
            self._tending.wake.set()
        self.other = other

    def _said(self) -> HostReport:
        gpus, most = self._tending.gpus(), self._settings.agent.max_workers
        return HostReport(
            host=self._host,
            agent=self._file.owner,
            seen_at_ms=now_ms(),
            gpus=gpus,
            free_bytes=self._devices.host_free_bytes,
            cached_models=cached_models(os.environ),
            launches=tuple(tended.report(self._host) for tended in self._tending.tended.values()),
            epoch=self._obedience.epoch,
            most_workers=most if most is not None else AS_MEMORY_ALLOWS if gpus else 1,
        )
