"""Where a worker's engine will run, known before it runs: on a GPU its start waits its turn.

On the host only the sizing of a cache is guarded, by the engine itself: loading weights there measures nothing.
Never here: the lock itself (reservation.py).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dispatch.settings import WorkerSettings
from worker import reservation
from worker.gpu import HOST, Gpus, HostMemory, device_of

_SIZE_THEIR_MEMORY = frozenset({"transformers"})


class Place:
    """One worker's place; `waiting` says, for people, that another worker is starting there."""

    def __init__(self, settings: WorkerSettings, gpus: Gpus) -> None:
        self.waiting = False
        self.device = self._find(settings, gpus)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Held while an engine loads and sizes its memory."""
        if self.device is None:
            yield
            return
        try:
            async with reservation.start_lock(self.device, self._wait):
                self.waiting = False
                yield
        finally:
            self.waiting = False

    def _wait(self) -> None:
        self.waiting = True

    @staticmethod
    def _find(settings: WorkerSettings, gpus: Gpus) -> str | None:
        if settings.engine not in _SIZE_THEIR_MEMORY:
            return None
        wanted = settings.device
        if wanted == "auto":
            wanted = "cpu" if isinstance(gpus, HostMemory) else "cuda"
        found = device_of(gpus, wanted)
        device = found.uuid if found is not None else wanted
        return None if device == HOST else device
