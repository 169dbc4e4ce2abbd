"""What the machine's devices say of themselves: the only place that speaks NVML.

Every call fails softly: a driver that does not answer makes a number unknown, never a worker dead. A MIG slice is a device
of its own. Never here: what to make of the numbers (worker/admission.py).
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from dispatch.reports import GpuStatus

HOST = "host"
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


class Gpus(Protocol):
    """The devices of this machine."""

    def devices(self, own: Iterable[int] = ()) -> Sequence[GpuStatus]:
        """All that can be seen, as they are now; those that do not answer are left out. `own`: processes not foreign to us."""
        ...


def device_of(gpus: Gpus, device: str, own: Iterable[int] = ()) -> GpuStatus | None:
    """The status of the device an engine runs on ("cuda", "cuda:1", "cpu", "sim A10"); None if it is not one of ours.

    "cpu" is the host's memory, whatever GPUs stand beside it; "cuda" never is.
    """
    if device.startswith("cpu"):
        return next(iter(HostMemory().devices()), None)
    if not device.startswith("cuda") or isinstance(gpus, HostMemory):
        return None
    found = gpus.devices(own)
    _, _, index = device.partition(":")
    number = int(index) if index.isdigit() else 0
    return found[number] if number < len(found) else None


class HostMemory:
    """No GPU: the host's own memory, in a GPU's terms. Within a container, what the container may have of it."""

    def __init__(self, meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> None:
        self._meminfo = meminfo
        self._cgroup = cgroup

    def devices(self, own: Iterable[int] = ()) -> Sequence[GpuStatus]:
        found = self._of_the_machine()
        if found is None:
            return ()
        total, free = found
        limit, used = _number(self._cgroup / "memory.max"), _number(self._cgroup / "memory.current")
        if limit is not None and used is not None and limit < total:
            # Files that nobody uses are given up before anything is refused.
            idle = _field(self._cgroup / "memory.stat", "inactive_file") or 0
            total, free = limit, min(free, max(0, limit - used + idle))
        return (GpuStatus(uuid=HOST, name="CPU", total_bytes=total, free_bytes=free),)

    def _of_the_machine(self) -> tuple[int, int] | None:
        total, free = _field(self._meminfo, "MemTotal:"), _field(self._meminfo, "MemAvailable:")
        if total is not None and free is not None:
            return total * 1024, free * 1024
        try:
            page = os.sysconf("SC_PAGE_SIZE")
            return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
        except (ValueError, OSError):
            return None


class FakeGpus:
    """Devices from a table, for tests; assign `table` to change what is seen."""

    def __init__(self, *table: GpuStatus) -> None:
        self.table: Sequence[GpuStatus] = table

    def devices(self, own: Iterable[int] = ()) -> Sequence[GpuStatus]:
        return self.table


class NvmlGpus:
    """NVIDIA's GPUs and MIG slices, in the order CUDA numbers them for this process."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def devices(self, own: Iterable[int] = ()) -> Sequence[GpuStatus]:
        ours = frozenset(own)
        found = []
        for handle in self._handles():
            with suppress(self._nvml.NVMLError):
                found.append(self._status(handle, ours))
        return found

    def _handles(self) -> list[Any]:
        """Where some GPU is cut into slices, CUDA sees slices: those named, else the first there is."""
        nvml = self._nvml
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            cards = self._cards()
            whole = [card for card in cards if not self._is_cut(card)]
            return whole or [s for card in cards for s in self._slices(card)][:1]
        handles = []
        for name in (n.strip() for n in visible.split(",")):
            try:
                if name.isdigit():
                    card = nvml.nvmlDeviceGetHandleByIndex(int(name))
                    handles += self._slices(card)[:1] if self._is_cut(card) else [card]
                elif name.startswith("MIG-"):
                    found = self._slice_named(name)
                    if found is None:
                        break
                    handles.append(found)
                else:
                    handles.append(nvml.nvmlDeviceGetHandleByUUID(name))
            except nvml.NVMLError:
                break  # CUDA, too, sees nothing from the first name it does not know
        return handles

    def _cards(self) -> list[Any]:
        nvml, cards = self._nvml, []
        for index in range(self._ask("nvmlDeviceGetCount") or 0):
            with suppress(nvml.NVMLError):
                cards.append(nvml.nvmlDeviceGetHandleByIndex(index))
        return cards

    def _is_cut(self, card: Any) -> bool:
        mode = self._ask("nvmlDeviceGetMigMode", card)
        return mode is not None and mode[0] == 1

    def _slices(self, card: Any) -> list[Any]:
        nvml, found = self._nvml, []
        for index in range(self._ask("nvmlDeviceGetMaxMigDeviceCount", card) or 0):
            with suppress(nvml.NVMLError):  # gaps are usual
                found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index))
        return found

    def _slice_named(self, name: str) -> Any:
        with suppress(self._nvml.NVMLError):
            return self._nvml.nvmlDeviceGetHandleByUUID(name)
        # Not every driver looks a slice up by its name.
        for card in self._cards():
            for piece in self._slices(card) if self._is_cut(card) else ():
                uuid = self._ask("nvmlDeviceGetUUID", piece)
                if uuid is not None and _text(uuid).startswith(name):
                    return piece
        return None

    def _status(self, handle: Any, own: frozenset[int]) -> GpuStatus:
        nvml = self._nvml
        total, free, reserved = self._memory(handle)
        # A slice has no utilisation of its own.
        busy = self._ask("nvmlDeviceGetUtilizationRates", handle)
        return GpuStatus(
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            name=_text(self._ask("nvmlDeviceGetName", handle) or "NVIDIA GPU"),
            total_bytes=total,
            free_bytes=free,
            utilisation=None if busy is None else busy.gpu / 100,
            reserved_bytes=reserved,
            foreign_bytes=self._foreign_bytes(handle, own),
        )

    def _memory(self, handle: Any) -> tuple[int, int, int]:
        """Total, free, and what the driver keeps for itself, which is not in the total (version 1 counts that as used)."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle, version=self._nvml.nvmlMemory_v2)
            return memory.total - memory.reserved, memory.free, memory.reserved
        except (self._nvml.NVMLError, AttributeError):
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            return memory.total, memory.free, 0

    def _foreign_bytes(self, handle: Any, own: frozenset[int]) -> int | None:
        """What processes other than `own` hold; None if not known of every one, or if ours have other numbers there than here."""
        used: dict[int, int] = {}
        seen = set[int]()
        for call in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v3"):
            found = self._ask(call, handle)
            if found is None:
                return None
            for process in found:
                seen.add(process.pid)
                if process.pid in own:
                    continue
                if process.usedGpuMemory is None:
                    return None
                # One that computes and draws stands in both lists with the same memory.
                used[process.pid] = max(used.get(process.pid, 0), process.usedGpuMemory)
        return sum(used.values()) if seen & own or not own else None

    def _ask(self, call: str, *about: Any) -> Any:
        """What the driver says; None if it does not, or does not know the question."""
        try:
            return getattr(self._nvml, call)(*about)
        except (self._nvml.NVMLError, AttributeError):
            return None


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


def _number(path: Path) -> int | None:
    """The number a file holds; None for "max", or where there is no such file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _field(path: Path, name: str) -> int | None:
    """The number that follows `name` at the start of a line."""
    try:
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == name:
                return int(words[1])
    except (OSError, ValueError):
        pass
    return None
