"""One engine's life in a worker: while it makes steps, how it died; and how many may die in a row.

Never here: requests, Redis, when to start the next one (worker.py).
"""

import asyncio
import contextlib
from dataclasses import dataclass

from worker.engines.base import Engine, EngineDead, EngineInfo

_CLOSE_S = 15.0
"""How long an engine may take to close; its process dies with ours anyway."""
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 30.0
_STEPS_IN_A_HANG = 4
"""An engine that tells how long a step may take is silent for several of them before it hangs."""


@dataclass(frozen=True, slots=True)
class Death:
    """How an engine died. What ran in one that died of its `own_fault` is suspect; `hung`: it must be killed.

    `silent_since`: when a hung one was first found silent (monotonic seconds). What came to it later had no part in that.
    """

    evidence: str
    own_fault: bool = True
    hung: bool = False
    silent_since: float | None = None


class Life:
    """A started engine, until it is dead. `died` is set once, by whoever learns of it first."""

    def __init__(self, engine: Engine, info: EngineInfo) -> None:
        self.engine = engine
        self.info = info
        self.died: asyncio.Future[Death] = asyncio.get_running_loop().create_future()

    def see_dead(self, death: Death) -> None:
        """Note its death, by evidence."""
        if not self.died.done():
            self.died.set_result(death)

    def steps(self) -> int:
        """The engine's steps; -1, and the death is noted, when it is gone."""
        try:
            return self.engine.steps()
        except EngineDead as error:
            self.see_dead(Death(str(error), error.own_fault))
            return -1

    def hang_s(self, at_least_s: float) -> float:
        """How long a silence is a hang for this engine."""
        return max(at_least_s, _STEPS_IN_A_HANG * self.info.longest_step_s)


async def close(engine: Engine) -> None:
    """Close it, in bounded time."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(engine.close(), _CLOSE_S)


@dataclass(frozen=True, slots=True)
class Failures:
    """Engines that died without a completed request in between. A value: `one_more` gives the next one."""

    limit: int
    count: int = 0

    def one_more(self) -> "Failures":
        """With one more."""
        return Failures(self.limit, self.count + 1)

    @property
    def too_many(self) -> bool:
        """Whether another engine would only take more requests down."""
        return self.count >= self.limit

    @property
    def delay_s(self) -> float:
        """How long to wait before the next engine."""
        return float(min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** max(0, self.count - 1)))
