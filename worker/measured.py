"""What a worker measures of its device and engine, looked at with every beat, and the room and the offer that follow.

Never here: NVML (gpu.py), the arithmetic (admission.py), Redis.
"""

import os
import time
from collections.abc import Sequence

from dispatch.messages import Offer
from dispatch.reports import GpuStatus, RoomStatus
from dispatch.settings import WorkerSettings
from worker import reservation
from worker.admission import DeviceMemory, Holding, Speeds, offer, room
from worker.engines.base import Engine, EngineInfo, EngineLoad
from worker.gpu import HOST, Gpus, device_of


class Measured:
    """One worker's, over the lives of its engines. `look` reads anew; all else is as it was at the last look."""

    def __init__(self, settings: WorkerSettings, gpus: Gpus) -> None:
        self.gpu: GpuStatus | None = None
        self._settings = settings
        self._gpus = gpus
        self._load = EngineLoad()
        self._memory: DeviceMemory | None = None
        self._utilisation = 0.0
        self._looked: tuple[float, float] | None = None
        self._foreign_at_start: int | None = None
        self._of: EngineInfo | None = None

    def look(self, engine: Engine, info: EngineInfo) -> None:
        """Ask the engine, then the device: what grows in between is then missing on the safe side."""
        self._load = engine.load()
        is_new, self._of = self._of is not info, info
        own = [os.getpid(), getattr(engine, "pid", None) or 0]
        self.gpu = device_of(self._gpus, info.device, own)
        if is_new:
            self._foreign_at_start = self.gpu.foreign_bytes if self.gpu is not None else None
        self._memory = self._memory_of(self.gpu, own) if self.gpu is not None else None
        self._utilisation = self._busy_share(time.monotonic())

    def forget(self) -> None:
        """There is no engine: nothing is known of it."""
        self._load, self._memory, self.gpu, self._looked, self._utilisation = EngineLoad(), None, None, None, 0.0

    def room(self, info: EngineInfo, holding: Sequence[Holding], *, cautious: bool) -> RoomStatus:
        """What fits now, and why."""
        return room(info, holding, self._memory, visible_tokens=self._load.used_tokens, cautious=cautious)

    def speeds(self, info: EngineInfo) -> Speeds:
        """What its pull is weighed by."""
        decode, prefill = info.weight, info.prefill_weight
        if self._settings.weight_measured:
            decode, prefill = self._load.weight or decode, self._load.prefill_weight or prefill
        return Speeds(round(decode, 3), round(prefill, 3), self._utilisation, self._load.waiting or 0)

    def offer(self, info: EngineInfo, worker: str, holding: Sequence[Holding], *, accepting: bool, cautious: bool) -> Offer:
        """The pull to park."""
        found = self.room(info, holding, cautious=cautious)
        return offer(info, worker, holding, accepting=accepting, found=found, speeds=self.speeds(info))

    def _memory_of(self, gpu: GpuStatus, own: Sequence[int]) -> DeviceMemory:
        promised = reservation.promised_elsewhere_bytes(gpu.uuid, own)
        headroom = int(gpu.total_bytes * self._settings.memory_headroom)
        return DeviceMemory(gpu.total_bytes, gpu.free_bytes, headroom, promised, self._is_squeezed(gpu, headroom))

    def _is_squeezed(self, gpu: GpuStatus, headroom: int) -> bool:
        """A GPU that its own engine filled is none of that: what an engine keeps for its steps it uses again."""
        if gpu.free_bytes >= headroom:
            return False
        return gpu.uuid == HOST or (gpu.foreign_bytes or 0) > (self._foreign_at_start or 0)

    def _busy_share(self, now: float) -> float:
        """The device's own figure where there is one, else the share of the time since the last look spent in steps."""
        busy_s = self._load.busy_s
        share = self._utilisation
        if busy_s is not None:
            if self._looked is not None and now > self._looked[0]:
                share = min(1.0, max(0.0, (busy_s - self._looked[1]) / (now - self._looked[0])))
            self._looked = (now, busy_s)
        return self.gpu.utilisation if self.gpu is not None and self.gpu.utilisation is not None else share
