"""Deep health: a minimal real inference when the engine has been silent for a while, and a canary whose tokens must not change.

Never while tokens flow: those are better evidence, and a probe among them would cost and prove less.
Never here: what follows from a failed one (worker.py).
"""

import asyncio
import logging
import time
from dataclasses import dataclass

from dispatch.errors import PenstockError
from dispatch.reports import ProbeReport
from worker.engines.base import Engine, EngineDead, EngineError
from worker.held import Held

_log = logging.getLogger("penstock.worker")
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Sick:
    """What is wrong. `garbage`: it answers, and wrongly; otherwise it is as good as dead."""

    why: str
    garbage: bool


class Health:
    """One worker's, over the lives of its engines: they all must say what the first one's canary said."""

    def __init__(self, held: Held, *, after_s: float, timeout_s: float) -> None:
        self.last: ProbeReport | None = None
        self._held = held
        self._after_s = after_s
        self._timeout_s = timeout_s
        self._expected: tuple[int, ...] | None = None
        self._quiet_since = time.monotonic()

    def flowed(self) -> None:
        """A token came."""
        self._quiet_since = time.monotonic()

    async def first(self, engine: Engine) -> Sick | None:
        """Ask a new engine, whatever else goes on."""
        return await self._ask(engine)

    async def watch(self, engine: Engine) -> Sick:
        """Ask it whenever it has been idle for long enough, until something is wrong."""
        while True:
            due_s = self._quiet_since + self._after_s - time.monotonic()
            if due_s > 0 or len(self._held):
                await asyncio.sleep(min(_LOOK_S, max(due_s, self._after_s / 10)))
                continue
            sick = await self._ask(engine)
            if sick is not None:
                return sick

    async def _ask(self, engine: Engine) -> Sick | None:
        """Probe and canary. What fails while requests came in between proves nothing: they compete, or batch otherwise."""
        began = self._quiet_since = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                await engine.probe()
                said = await engine.canary()
                if self._expected is not None and said != self._expected and self._undisturbed(began):
                    said = await engine.canary()  # once may be chance
        except TimeoutError:
            return self._judged(began, Sick(f"it did not answer a probe within {self._timeout_s:g} s", garbage=False))
        except Exception as error:
            known = isinstance(error, EngineDead | EngineError | PenstockError)
            return self._judged(began, Sick(f"it failed a probe: {error if known else type(error).__name__}", garbage=False))
        if self._expected is None:
            self._expected = said
        if said != self._expected:
            return self._judged(began, Sick("The canary's tokens changed: what this engine says is not to be trusted.", True))
        return self._judged(began, None)

    def _undisturbed(self, began: float) -> bool:
        return not len(self._held) and self._quiet_since == began

    def _judged(self, began: float, sick: Sick | None) -> Sick | None:
        took_s = time.monotonic() - began
        if sick is not None and not self._undisturbed(began):
            return None
        self.last = ProbeReport(sick is None, int(time.time() * 1000), round(took_s, 3))
        if sick is not None:
            _log.error("see the engine fail a probe", extra={"why": sick.why, "took_s": round(took_s, 1)})
        self._quiet_since = time.monotonic()
        return sick
