"""What a worker says of itself in every heartbeat. Never here: when it beats, what anybody makes of it."""

import os
import socket
import time

from dispatch.reports import Heartbeat, ProbeReport
from dispatch.settings import WorkerSettings
from dispatch.states import WorkerState
from worker.admission import needed
from worker.engines.base import EngineInfo
from worker.held import Held
from worker.measured import Measured
from worker.reservation import rss_bytes

_SMOOTHING = 0.5


class Meter:
    """Tokens a second, smoothed over the last few ticks."""

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        self._counted = 0
        self._ticked_at: float | None = None

    def count(self, tokens: int) -> None:
        """Some more tokens came."""
        self._counted += tokens

    def tick(self, now: float) -> None:
        """Take stock; called with every heartbeat."""
        if self._ticked_at is not None and now > self._ticked_at:
            rate = self._counted / (now - self._ticked_at)
            self.tokens_per_s += _SMOOTHING * (rate - self.tokens_per_s)
            if self.tokens_per_s < 0.05:
                self.tokens_per_s = 0.0
        self._counted, self._ticked_at = 0, now


class Vitals:
    """The parts of a heartbeat that stay the same, and those that are measured."""

    def __init__(self, settings: WorkerSettings, measured: Measured) -> None:
        self.meter = Meter()
        self.info: EngineInfo | None = None
        self.error = ""
        self._settings = settings
        self._measured = measured
        self._host = socket.gethostname()
        self._started_at_ms = _now_ms()

    def heartbeat(self, worker: str, state: WorkerState, held: Held, progress: str, probe: ProbeReport | None) -> Heartbeat:
        """The heartbeat of this moment."""
        info, holdings = self.info, held.holdings()
        speeds = self._measured.speeds(info) if info else None
        self.meter.tick(time.monotonic())
        return Heartbeat(
            id=worker,
            host=self._host,
            pid=os.getpid(),
            model=info.card.name if info else self._settings.served_name or self._settings.model,
            engine=self._settings.engine,
            state=state,
            limit_tokens=info.limit_tokens if info else 0,
            slots=info.slots if info else 0,
            weight=speeds.weight if speeds else 0.0,
            held=len(holdings),
            held_tokens=needed(holdings),
            started_at_ms=self._started_at_ms,
            beat_at_ms=_now_ms(),
            progress=progress,
            error=self.error,
            gpu=self._measured.gpu,
            rss_bytes=rss_bytes(),
            tokens_per_s=round(self.meter.tokens_per_s, 2),
            probe=probe,
            prefill_weight=speeds.prefill_weight if speeds else 0.0,
            waiting=speeds.waiting if speeds else 0,
            room=self._measured.room(info, holdings, cautious=held.is_cautious) if info else None,
            pool=self._settings.pool,
            launch=self._settings.launch,
        )


def _now_ms() -> int:
    return int(time.time() * 1000)
