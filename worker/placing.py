"""Where a worker's engine will run, known before it runs: its start waits its turn there, and what it may come to hold is noted.

Never here: the lock and the notes themselves (reservation.py).
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dispatch.settings import WorkerSettings
from worker import reservation
from worker.engines.base import Engine, EngineInfo
from worker.gpu import HOST, Gpus, HostMemory, device_of

_SIZE_THEIR_MEMORY = frozenset({"transformers"})


class Place:
    """One worker's place; `waiting` says, for people, that another worker is starting there."""

    def __init__(self, settings: WorkerSettings, gpus: Gpus) -> None:
        self.waiting = False
        self.device = self._find(settings, gpus)
        self._promised_for: int | None = None

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

    def promise(self, engine: Engine, info: EngineInfo) -> None:
        """A started engine's KV pool is taken; on the host its pages only become its own as they are filled."""
        if self.device == HOST:
            pid = getattr(engine, "pid", None) or os.getpid()
            reservation.promise(HOST, pid, reservation.rss_bytes(pid) + info.limit_tokens * info.card.kv_bytes_per_token)
            self._promised_for = pid

    def withdraw(self) -> None:
        """The engine is gone."""
        if self.device is not None and self._promised_for is not None:
            reservation.withdraw(self.device, self._promised_for)
            self._promised_for = None

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
        return found.uuid if found is not None else wanted
