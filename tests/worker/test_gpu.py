"""What devices say of themselves, and that a driver that does not answer costs a number, not a worker."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dispatch.messages import GpuStatus
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
    assert devices[0] == GpuStatus("GPU-0", "NVIDIA H100", total_bytes=90, free_bytes=60, utilisation=0.5)
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
