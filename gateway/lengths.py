"""What an answer of a model will be long, as the fleet has learned it; looked up now and then, never waited for.

Never here: how it is learned (dispatch/lengths.py), what follows for a cost (admission.py).
"""

import asyncio
import time

from dispatch.faults import STORE_FAULT
from dispatch.lengths import Lengths, percentile

_KEPT_S = 3.0
_SHARE = 0.95


class KnownLengths:
    """The 95th percentile of each model's answers, a few seconds old at most while it is asked for."""

    def __init__(self, lengths: Lengths) -> None:
        self._lengths = lengths
        self._kept: dict[str, tuple[float, int | None]] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    def get(self, model: str) -> int | None:
        """The length that 95 of 100 answers do not exceed; None while that is not known here."""
        looked_at, known = self._kept.get(model, (0.0, None))
        if time.monotonic() - looked_at >= _KEPT_S and model not in self._looking:
            task = self._looking[model] = asyncio.create_task(self._look(model))
            task.add_done_callback(lambda _: self._looking.pop(model, None))
        return known

    async def until_known(self, model: str) -> None:
        """Wait for the look that is under way, if any."""
        if (task := self._looking.get(model)) is not None:
            await asyncio.shield(task)

    async def _look(self, model: str) -> None:
        try:
            known = percentile(await self._lengths.table(model), _SHARE)
        except STORE_FAULT:
            known = self._kept.get(model, (0.0, None))[1]
        self._kept[model] = (time.monotonic(), known)
