"""What a host has: its GPUs as a process of their own tells them, free memory, models in the cache. And where a worker goes.

Never here: NVML (worker/gpu_report.py), starting workers.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from dispatch.processes import with_parent
from dispatch.reports import GpuStatus
from dispatch.tasks import cancelled

_HOST = "host"
_AGAIN_S = 5.0
_SILENT_S = 15.0
_GIB = 1 << 30
_log = logging.getLogger("penstock.agent")


@dataclass(frozen=True, slots=True)
class Claim:
    """GPU memory that one of our workers needs. `visible`: it had the time to take it, so the device's own numbers have it."""

    gpu: str
    need_bytes: int
    visible: bool


class Devices:
    """The devices of this host. `fakes` ("A10=24,H100=80": name and GiB) replace the GPUs, for tests and demos."""

    def __init__(self, fakes: Mapping[str, float] | Sequence[str], every_s: float) -> None:
        self._fakes = tuple(_fake(number, text) for number, text in enumerate(fakes))
        self._every_s = every_s
        self._seen: tuple[GpuStatus, ...] = ()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look from now on; returns after the first look, or when there is nothing to be seen."""
        looked = asyncio.Event()
        self._task = asyncio.create_task(self._follow(looked), name="devices")
        with suppress(TimeoutError):
            await asyncio.wait_for(looked.wait(), _SILENT_S)

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            await cancelled(self._task)

    def gpus(self, claims: Iterable[Claim] = ()) -> tuple[GpuStatus, ...]:
        """Each with what is free after our own claims that it does not show yet."""
        claimed: dict[str, int] = {}
        for claim in claims:
            if self._fakes or not claim.visible:
                claimed[claim.gpu] = claimed.get(claim.gpu, 0) + claim.need_bytes
        found = self._fakes or tuple(device for device in self._seen if device.uuid != _HOST)
        return tuple(replace(gpu, free_bytes=max(0, gpu.free_bytes - claimed.get(gpu.uuid, 0))) for gpu in found)

    @property
    def host_free_bytes(self) -> int:
        """Of the host's own memory."""
        return next((device.free_bytes for device in self._seen if device.uuid == _HOST), 0)

    async def _follow(self, looked: asyncio.Event) -> None:
        while True:
            try:
                await self._read(looked)
            except (OSError, TimeoutError, ValueError, msgspec.DecodeError) as error:
                _log.warning("cannot see this host's devices", extra={"why": str(error) or type(error).__name__})
            looked.set()
            await asyncio.sleep(_AGAIN_S)

    async def _read(self, looked: asyncio.Event) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "worker.gpu_report",
            str(self._every_s),
            env=with_parent(dict(os.environ)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            # A driver that hangs is let go: numbers of long ago are worse than none.
            while line := await asyncio.wait_for(process.stdout.readline(), self._every_s + _SILENT_S):
                self._seen = tuple(msgspec.json.decode(line, type=list[GpuStatus]))
                looked.set()
        finally:
            self._seen = ()
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def choose_gpu(gpus: Sequence[GpuStatus], counts: Mapping[str, int], need_bytes: int) -> GpuStatus | None:
    """The GPU for one more worker: with the most free memory; where its need is not known, that with the fewest of ours. Pure."""
    fitting = [gpu for gpu in gpus if gpu.free_bytes >= need_bytes]
    if need_bytes:
        return max(fitting, key=lambda gpu: gpu.free_bytes, default=None)
    return min(fitting, key=lambda gpu: (counts.get(gpu.uuid, 0), -gpu.free_bytes), default=None)


def cached_models(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Hub ids of the models in the cache of this user, by the names of its folders."""
    home = Path(environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface")
    folder = Path(environment.get("HF_HUB_CACHE") or home / "hub").expanduser()
    try:
        names = [path.name for path in folder.iterdir() if path.name.startswith("models--")]
    except OSError:
        return ()
    return tuple(sorted(name.removeprefix("models--").replace("--", "/") for name in names))


def _fake(number: int, text: str) -> GpuStatus:
    name, _, gib = text.partition("=")
    total = int(float(gib or 24) * _GIB)
    return GpuStatus(uuid=f"fake-{number}", name=name, total_bytes=total, free_bytes=total)
