"""What devices say of themselves, and that a driver that does not answer costs a number, not a worker."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dispatch.reports import GpuStatus
from worker.gpu import FakeGpus, HostMemory, NvmlGpus, device_of, find_gpus


class NvmlError(Exception):
    pass


def fake_nvml(**broken: Callable[..., Any]) -> Any:
    def by_uuid(name: str) -> int:
        if not name.startswith("GPU-"):
            raise NvmlError
        return int(name.removeprefix("GPU-"))

    calls = {
        "NVMLError": NvmlError,
        "nvmlMemory_v2": 2,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetUUID": lambda h: f"GPU-{h}",
        "nvmlDeviceGetName": lambda h: b"NVIDIA H100",
        "nvmlDeviceGetUtilizationRates": lambda h: SimpleNamespace(gpu=50),
        "nvmlDeviceGetMemoryInfo": lambda h, version=1: SimpleNamespace(total=100, free=60, reserved=10),
    }
    return SimpleNamespace(**{**calls, **broken})


def refuse(*_: object, **__: object) -> Any:
    raise NvmlError


def test_devices_without_what_the_driver_reserves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices = NvmlGpus(fake_nvml()).devices()
    assert devices[0] == GpuStatus("GPU-0", "NVIDIA H100", total_bytes=90, free_bytes=60, utilisation=0.5, reserved_bytes=10)
    assert len(devices) == 2


def test_cuda_numbers_only_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,0,nonsense,1")
    assert [d.uuid for d in NvmlGpus(fake_nvml()).devices()] == ["GPU-1", "GPU-0"]
    found = device_of(NvmlGpus(fake_nvml()), "cuda:1")
    assert found is not None and found.uuid == "GPU-0"


def test_a_number_the_driver_refuses_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert NvmlGpus(fake_nvml(nvmlDeviceGetUtilizationRates=refuse)).devices()[0].utilisation is None
    assert NvmlGpus(fake_nvml(nvmlDeviceGetMemoryInfo=refuse)).devices() == []


def test_old_drivers_know_memory_version_1_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def version_1(handle: int, **more: object) -> Any:
        if more:
            raise NvmlError
        return SimpleNamespace(total=100, free=60)

    assert NvmlGpus(fake_nvml(nvmlDeviceGetMemoryInfo=version_1)).devices()[0].total_bytes == 100


def test_the_host_stands_in_for_a_gpu() -> None:
    (host,) = HostMemory().devices()
    assert 0 < host.free_bytes <= host.total_bytes
    assert device_of(HostMemory(), "cpu") is not None
    assert find_gpus().devices()


def test_a_cpu_engine_is_judged_by_the_hosts_memory_and_a_gpu_engine_never() -> None:
    gpus = FakeGpus(GpuStatus("GPU-9", "Fake", 2, 1), GpuStatus("GPU-8", "Fake", 4, 3))
    host = device_of(gpus, "cpu")
    assert host is not None and host.uuid == "host"
    assert device_of(gpus, "cuda:1") == gpus.table[1]
    assert device_of(HostMemory(), "cuda:0") is None  # no driver of ours answers: nothing is known of the GPU


def test_a_simulated_device_is_none_of_ours() -> None:
    gpus = FakeGpus(GpuStatus("GPU-9", "Fake", 2, 1))
    assert device_of(gpus, "sim A10") is None
    assert device_of(gpus, "cuda:3") is None
    assert device_of(gpus, "cuda") == gpus.table[0]


def process(pid: int, used: int | None) -> Any:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def test_what_other_processes_hold_is_told_apart_from_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    compute = [process(7, 30), process(8, 20), process(9, 5)]
    drawing = [process(9, 5), process(10, 1)]
    calls = {
        "nvmlDeviceGetComputeRunningProcesses_v3": lambda h: compute,
        "nvmlDeviceGetGraphicsRunningProcesses_v3": lambda h: drawing,
    }
    gpus = NvmlGpus(fake_nvml(**calls))
    assert gpus.devices([7])[0].foreign_bytes == 26  # the one in both lists counts once
    assert gpus.devices([7, 8, 9, 10])[0].foreign_bytes == 0
    compute.append(process(11, None))
    assert gpus.devices([7])[0].foreign_bytes is None
    assert gpus.devices([11])[0].foreign_bytes == 56
    assert gpus.devices([12])[0].foreign_bytes is None  # in a container ours have other numbers: nothing can be told apart


CALLS = [name for name in vars(fake_nvml()) if name.startswith("nvmlDevice")]


@pytest.mark.parametrize("broken", [*CALLS, "nvmlDeviceGetMigMode", "nvmlDeviceGetComputeRunningProcesses_v3"])
def test_whatever_call_fails_nothing_is_raised(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = NvmlGpus(fake_nvml(**{broken: refuse})).devices()
    gone = {"nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo"}
    assert len(found) == (0 if broken in gone else 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0,MIG-1")
    NvmlGpus(fake_nvml(**{broken: refuse})).devices()


def cut_nvml(**more: Any) -> Any:
    """Card 0 is cut into two slices with a gap between; card 1 is whole."""

    def slice_of(card: int, index: int) -> str:
        if card != 0 or index == 1:
            raise NvmlError
        return f"slice-{index}"

    def uuid_of(handle: int | str) -> str:
        return f"MIG-{handle}" if isinstance(handle, str) else f"GPU-{handle}"

    def busy(handle: int | str) -> Any:
        if isinstance(handle, str):
            raise NvmlError
        return SimpleNamespace(gpu=50)

    calls: dict[str, Any] = {
        "NVML_ERROR_NOT_FOUND": 6,
        "nvmlDeviceGetMigMode": lambda card: [int(card == 0), 0],
        "nvmlDeviceGetMaxMigDeviceCount": lambda card: 7,
        "nvmlDeviceGetMigDeviceHandleByIndex": slice_of,
        "nvmlDeviceGetUUID": uuid_of,
        "nvmlDeviceGetUtilizationRates": busy,
        "nvmlDeviceGetMemoryInfo": lambda h, version=1: SimpleNamespace(
            total=20 if isinstance(h, str) else 100, free=9, reserved=1
        ),
    }
    return fake_nvml(**{**calls, **more})


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, ["GPU-1"]),
        ("MIG-slice-2", ["MIG-slice-2"]),
        ("MIG-slice-2,MIG-slice-0,1", ["MIG-slice-2", "MIG-slice-0", "GPU-1"]),
        ("0", ["MIG-slice-0"]),
        ("MIG-nonsense,1", []),
        ("", []),
    ],
)
def test_a_slice_is_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: list[str]) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = NvmlGpus(cut_nvml()).devices()
    assert [d.uuid for d in found] == seen
    for device in found:
        cut = device.uuid.startswith("MIG-")
        assert (device.total_bytes, device.utilisation) == ((19, None) if cut else (99, 0.5))


def test_of_cards_that_are_all_cut_cuda_sees_the_first_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = cut_nvml(nvmlDeviceGetCount=lambda: 1)
    assert [d.uuid for d in NvmlGpus(nvml).devices()] == ["MIG-slice-0"]


def test_the_hosts_memory_is_what_could_be_had_not_what_lies_idle(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  600 kB\n")
    free = HostMemory(tmp_path / "meminfo", tmp_path).devices()[0]
    assert (free.total_bytes, free.free_bytes) == (1000 * 1024, 600 * 1024)
    # A container's limit counts before the machine's.
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("300000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\ninactive_file 50000\n")
    bound = HostMemory(tmp_path / "meminfo", tmp_path).devices()[0]
    assert (bound.total_bytes, bound.free_bytes) == (500_000, 250_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert HostMemory(tmp_path / "meminfo", tmp_path).devices()[0] == free
