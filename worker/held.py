"""What this worker holds: its executions, the room they leave, and who moves when there is none left.

Never here: Redis, the engine.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

from dispatch.messages import Grant
from dispatch.pricing import PAGE_TOKENS
from worker.admission import Holding, fits, is_overrun
from worker.engines.base import EngineInfo
from worker.execution import Execution
from worker.growth import Around

_LONE = 4
"""Up to so many streams each token is worth a write of its own."""
_CAUTIOUS_S = 10.0
"""How long after an overrun all that is held counts at its most: what was moved must not come straight back to a full room."""
_NEARLY = 0.5
"""How full the memory must look for an engine that runs out of it to have run out by what it holds."""
_log = logging.getLogger("penstock.worker")


class Held:
    """Executions by request and attempt, in the order they were granted."""

    def __init__(self) -> None:
        self._executions: dict[tuple[str, int], Execution] = {}
        self._admitted: dict[tuple[str, int], Execution] = {}
        self._changed = asyncio.Event()
        self._cautious_until = 0.0
        self._spare_pages = 0
        self.overruns = 0
        self.holds_tokens: Callable[[], int | None] = lambda: None
        """KV tokens that may be held together now, as the device and the engine tell."""

    def __len__(self) -> int:
        return len(self._executions)

    def __iter__(self) -> Iterator[Execution]:
        return iter(tuple(self._executions.values()))

    def add(self, execution: Execution) -> None:
        self._executions[_key(execution.grant)] = execution

    def remove(self, execution: Execution) -> None:
        self._executions.pop(_key(execution.grant), None)
        self._admitted.pop(_key(execution.grant), None)
        self._changed.set()

    def clear(self) -> None:
        """Hold nothing any more, all at once."""
        self._executions.clear()
        self._admitted.clear()
        self._changed.set()

    def find(self, request: str, attempt: int) -> Execution | None:
        return self._executions.get((request, attempt))

    def grants(self) -> Sequence[Grant]:
        return [e.grant for e in self._executions.values()]

    def holdings(self) -> Sequence[Holding]:
        return [e.holding for e in self._executions.values()]

    def is_busy(self) -> bool:
        """Whether so much is held that chunks must gather."""
        return len(self._executions) > _LONE

    def is_generating(self) -> bool:
        """Whether the engine owes steps."""
        return any(e.generating for e in self._executions.values())

    async def until_room(self, execution: Execution, info: EngineInfo) -> None:
        """Wait until it fits beside those already admitted.

        Redis grants only what fits by its count; but what it took off us may still be leaving the engine. A grant that
        waits here too long is taken back uncharged, by Redis.
        """
        while not self._has_room(execution, info):
            self._changed.clear()
            await self._changed.wait()
        self._admitted[_key(execution.grant)] = execution

    def _has_room(self, execution: Execution, info: EngineInfo) -> bool:
        """Mostly all fit even at their most, and that is quickly added up."""
        bound, beside = self._bound(info), self._admitted.values()
        most = sum([e.growth.at_most_tokens for e in beside]) + execution.growth.at_most_tokens
        if len(beside) < info.slots and most <= bound:
            return True
        return fits(bound, info.slots, [e.holding for e in beside], execution.holding)

    @property
    def is_cautious(self) -> bool:
        """Whether estimates have just proved too small."""
        return time.monotonic() < self._cautious_until

    def grown(self, pages: int) -> None:
        """Something filled so many pages more. Looked into only once that can matter: it happens thousands of times a second."""
        self._spare_pages -= pages
        if self._spare_pages <= 0:
            self.relieve()

    def relieve(self) -> None:
        """Where the next step might not find its memory, the youngest makes room: it has the least to lose. At once, so that
        no engine has to find out."""
        holds = self.holds_tokens()
        if holds is None:
            return
        growing = [e for e in self._executions.values() if e.generating and not e.is_decided]
        # What is already on its way out needs nothing more.
        while growing and is_overrun(holds, [e.holding for e in growing]):
            youngest = max(growing, key=lambda e: e.generating_since)
            growing.remove(youngest)
            self._note_overrun(youngest, holds, len(growing))
            youngest.move("it outgrew the memory there is here")
        self._spare_pages = (holds - sum(e.holding.reach_tokens for e in growing)) // PAGE_TOKENS

    def is_crowded(self, execution: Execution) -> bool:
        """Whether memory ran out because those held outgrew it together."""
        holds = self.holds_tokens()
        beside = [e for e in self._executions.values() if e is not execution and e.generating]
        if holds is None or not beside:
            return False
        holding = [e.growth.holding(generating=True) for e in (execution, *beside)]
        # What was heard of the engine may be some pages old; but what could never outgrow the memory did not.
        nearly_full = sum(h.used_tokens for h in holding) >= _NEARLY * holds
        crowded = nearly_full and sum(h.counted(cautious=True) for h in holding) > holds
        if crowded:
            self._note_overrun(execution, holds, len(beside))
        return crowded

    def _note_overrun(self, moved: Execution, holds: int, beside: int) -> None:
        self.overruns += 1
        self._cautious_until = time.monotonic() + _CAUTIOUS_S
        fields = {
            "request": moved.grant.request,
            "held_tokens": holds,
            "cost_tokens": moved.growth.dearer_tokens,
            "beside": beside,
        }
        _log.warning("move the youngest: what is held outgrew its cost", extra=fields)

    def _bound(self, info: EngineInfo) -> int:
        holds = self.holds_tokens()
        return info.limit_tokens if holds is None else min(holds, info.limit_tokens)

    async def until_empty(self) -> None:
        while self._executions:
            self._changed.clear()
            await self._changed.wait()


class Beside(Around):
    """Those beside an execution in one worker."""

    def __init__(
        self, held: Held, *, largest_tokens: Callable[[], Awaitable[int]], before_move: Callable[[], Awaitable[None]]
    ) -> None:
        self._held = held
        self._largest_tokens = largest_tokens
        self._before_move = before_move

    def begun(self, pages: int) -> None:
        self._held.grown(pages)

    def grown(self, pages: int) -> None:
        self._held.grown(pages)

    def is_crowded(self, grant: Grant) -> bool:
        execution = self._held.find(grant.request, grant.attempt)
        return execution is not None and self._held.is_crowded(execution)

    async def largest_tokens(self) -> int:
        return await self._largest_tokens()

    async def before_move(self) -> None:
        await self._before_move()


def _key(grant: Grant) -> tuple[str, int]:
    return (grant.request, grant.attempt)
