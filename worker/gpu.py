"""What the machine's devices say of themselves: the only place that speaks NVML.

Every call fails softly: a driver that does not answer makes a number unknown, never a worker dead.
Never here: what to make of the numbers (worker/admission.py).
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from dispatch.messages import GpuStatus


class Gpus(Protocol):
    """The devices of this machine."""

    def devices(self) -> Sequence[GpuStatus]:
        """All that can be seen, as they are now; those that do not answer are left out."""
        ...


def device_of(gpus: Gpus, device: str) -> GpuStatus | None:
    """The status of the device an engine runs on ("cuda", "cuda:1", "cpu", "sim A10"); None if it is not one of ours.

    "cpu" is the host's memory, whatever GPUs stand beside it; "cuda" never is.
    """
    if device.startswith("cpu"):
        return next(iter(HostMemory().devices()), None)
    if not device.startswith("cuda") or isinstance(gpus, HostMemory):
        return None
    found = gpus.devices()
    _, _, index = device.partition(":")
    number = int(index) if index.isdigit() else 0
    return found[number] if number < len(found) else None


class HostMemory:
    """No GPU: the host's own memory, in a GPU's terms."""

    def devices(self) -> Sequence[GpuStatus]:
        try:
            page = os.sysconf("SC_PAGE_SIZE")
            total = page * os.sysconf("SC_PHYS_PAGES")
            free = page * os.sysconf("SC_AVPHYS_PAGES")
        except (ValueError, OSError):
            return ()
        return (GpuStatus(uuid="host", name="CPU", total_bytes=total, free_bytes=free),)


class FakeGpus:
    """Devices from a table, for tests; assign `table` to change what is seen."""

    def __init__(self, *table: GpuStatus) -> None:
        self.table: Sequence[GpuStatus] = table

    def devices(self) -> Sequence[GpuStatus]:
        return self.table


class NvmlGpus:
    """NVIDIA's GPUs, in the order CUDA numbers them for this process."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def devices(self) -> Sequence[GpuStatus]:
        found = []
        for handle in self._handles():
            with suppress(self._nvml.NVMLError):
                found.append(self._status(handle))
        return found

    def _handles(self) -> list[Any]:
        nvml = self._nvml
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [str(i) for i in range(nvml.nvmlDeviceGetCount())] if visible is None else visible.split(",")
        handles = []
        for name in (n.strip() for n in names):
            try:
                if name.isdigit():
                    handles.append(nvml.nvmlDeviceGetHandleByIndex(int(name)))
                else:
                    handles.append(nvml.nvmlDeviceGetHandleByUUID(name))
            except nvml.NVMLError:
                break  # CUDA, too, sees nothing from the first name it does not know
        return handles

    def _status(self, handle: Any) -> GpuStatus:
        nvml = self._nvml
        total, free = self._memory(handle)
        utilisation: float | None = None
        with suppress(nvml.NVMLError):
            utilisation = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        return GpuStatus(
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            name=_text(nvml.nvmlDeviceGetName(handle)),
            total_bytes=total,
            free_bytes=free,
            utilisation=utilisation,
        )

    def _memory(self, handle: Any) -> tuple[int, int]:
        """Total and free bytes, without what the driver keeps for itself (version 1 counts that as used)."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle, version=self._nvml.nvmlMemory_v2)
            return memory.total - memory.reserved, memory.free
        except (self._nvml.NVMLError, AttributeError):
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            return memory.total, memory.free


def find_gpus() -> Gpus:
    """NVIDIA's GPUs if a driver answers and there are any, else the host."""
    try:
        import pynvml
    except ImportError:
        return HostMemory()
    try:
        pynvml.nvmlInit()
        gpus = NvmlGpus(pynvml)
        return gpus if gpus.devices() else HostMemory()
    except pynvml.NVMLError:
        return HostMemory()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
