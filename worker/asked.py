"""Whether somebody asked this worker to drain: it takes nothing new, finishes what it holds, and stays until it is ended.

Other than after SIGTERM this can be taken back: a worker that is needed again is kept. Never here: the drain before the end
(worker.py), who asks (the autoscaler, a person).
"""

import logging
from collections.abc import Callable

from dispatch.fleet import Fleet

_log = logging.getLogger("penstock.worker")


class AskedToDrain:
    """Looked up with every beat. `names`: those it may be asked by, its id and its order. `on_change` hears of both ways."""

    def __init__(self, fleet: Fleet, names: Callable[[], tuple[str, ...]], on_change: Callable[[], None]) -> None:
        self.asked = False
        self._fleet = fleet
        self._names = names
        self._on_change = on_change

    async def look(self) -> None:
        """Look again."""
        names = tuple(name for name in self._names() if name)
        asked = await self._fleet.is_asked_to_drain(*names)
        if asked != self.asked:
            self.asked = asked
            _log.info("drain: it was asked to" if asked else "take requests again: it is needed", extra={"worker_id": names[0]})
            self._on_change()
