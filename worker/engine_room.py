"""Where a worker's engines are made, started and ended, one after another, with a longer pause after each that failed.

Never here: requests, Redis, when an engine counts as dead (life.py, health.py).
"""

import asyncio
import logging
from collections.abc import Callable

from dispatch.errors import PenstockError
from worker.engines.base import Engine
from worker.health import Health, Sick
from worker.life import Death, Failures, Life, close
from worker.placing import Place

_log = logging.getLogger("penstock.worker")
_SHOWN_CHARACTERS = 200
_WAITING = "waiting for another worker to start on this device"


class NoEngine(Exception):
    """There will be no engine: what happened, why, and what to do."""

    def __init__(self, what: str, why: str, to_do: str) -> None:
        super().__init__(what)
        self.what, self.why, self.to_do = what, why, to_do


class EngineRoom:
    """`make` builds an engine that is not started; it is called at once, so that bad settings are known at once."""

    def __init__(self, make: Callable[[], Engine], name: str, health: Health, place: Place, *, most_failures: int) -> None:
        self.engine = make()
        self._make = make
        self._name = name
        self._health = health
        self._place = place
        self._failures = Failures(most_failures)
        self._pause = ""
        self._because = ""

    @property
    def progress(self) -> str:
        """What a start is at, and why there is one; "" when started."""
        said = self._pause or (_WAITING if self._place.waiting else self.engine.progress)
        return f"{said} ({self._because})" if said and self._because else said or self._because

    def completed(self) -> None:
        """A request was completed: the failures before it are forgotten."""
        if self._failures.count:
            self._failures = Failures(self._failures.limit)

    async def first(self) -> tuple[Life, Sick | None]:
        """The started engine, and what is wrong with its answers if anything is. Raises NoEngine."""
        try:
            return await self._start()
        except Exception as error:
            what = f"The engine {self._name!r} could not start."
            if isinstance(error, PenstockError):
                raise NoEngine(what, error.message, error.hint) from error
            _log.exception("fail to start the engine")
            raise NoEngine(what, f"{type(error).__name__}: {error}", "") from error

    async def next(self, death: Death) -> tuple[Life, Sick | None]:
        """As `first`, after an engine has died. Raises NoEngine when too many died in a row."""
        why = death.evidence
        while True:
            self._failures = self._failures.one_more()
            if self._failures.too_many:
                raise NoEngine(
                    f"The engine died {self._failures.count} times without completing a request in between.",
                    f"the last time: {why}",
                    "Look at the worker's log for each; free memory, or mend the model, driver or device, then start it again.",
                )
            delay_s = self._failures.delay_s
            self._because = why[:_SHOWN_CHARACTERS]
            self._pause = f"starting a new engine in {delay_s:g} s"
            _log.warning("replace the engine", extra={"evidence": why, "delay_s": delay_s, "failures": self._failures.count})
            await asyncio.sleep(delay_s)
            self._pause = ""
            try:
                self.engine = self._make()
                return await self._start()
            except Exception as error:
                why = error.message if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"

    async def bury(self, death: Death) -> None:
        """End what is left of a dead engine. Its memory is free afterwards."""
        if death.hung:
            self.engine.kill()
        await close(self.engine)

    async def close(self) -> None:
        """End the engine there is."""
        await close(self.engine)

    async def _start(self) -> tuple[Life, Sick | None]:
        engine = self.engine
        try:
            async with self._place.turn():
                info = await engine.start()
            sick = await self._health.first(engine)
            if sick is not None and not sick.garbage:
                raise PenstockError("engine_error", f"The engine started, but {sick.why}.")
        except Exception:
            engine.kill()
            await close(engine)
            raise
        self._because = ""
        return Life(engine, info), sick
