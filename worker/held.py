"""What this worker holds: its executions, and the room they leave.

Never here: Redis, the engine.
"""

import asyncio
from collections.abc import Iterator, Sequence

from dispatch.messages import Grant
from worker.admission import Holding, fits
from worker.engines.base import EngineInfo
from worker.execution import Execution

_LONE = 4
"""Up to so many streams each token is worth a write of its own."""


class Held:
    """Executions by request and attempt, in the order they were granted."""

    def __init__(self) -> None:
        self._executions: dict[tuple[str, int], Execution] = {}
        self._admitted: set[tuple[str, int]] = set()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._executions)

    def __iter__(self) -> Iterator[Execution]:
        return iter(tuple(self._executions.values()))

    def add(self, execution: Execution) -> None:
        self._executions[_key(execution.grant)] = execution

    def remove(self, execution: Execution) -> None:
        self._executions.pop(_key(execution.grant), None)
        self._admitted.discard(_key(execution.grant))
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
        while not fits(info, [self._executions[k].holding for k in self._admitted], execution.holding):
            self._changed.clear()
            await self._changed.wait()
        self._admitted.add(_key(execution.grant))

    async def until_empty(self) -> None:
        while self._executions:
            self._changed.clear()
            await self._changed.wait()


def _key(grant: Grant) -> tuple[str, int]:
    return (grant.request, grant.attempt)
