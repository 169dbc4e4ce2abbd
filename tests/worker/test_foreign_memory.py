"""Another process takes memory of the worker's device and gives it back: the limit follows, and what no longer fits moves."""

from dataclasses import replace
from typing import Any

import pytest

from dispatch.fleet import Fleet
from dispatch.keys import ShardKeys
from dispatch.queue import Queue
from dispatch.reports import GpuStatus, Heartbeat
from dispatch.rules import QueueRules
from dispatch.settings import Settings
from dispatch.states import RequestState
from tests.worker.conftest import Client, until
from tests.worker.test_overruns import ask
from tests.worker.test_worker import expected, working
from worker.engines.base import EngineInfo
from worker.engines.sim import SimEngine
from worker.engines.sim_gpus import KV_BYTES_PER_TOKEN, PAGE_TOKENS
from worker.worker import Worker

GB = 10**9
TOTAL = 80 * GB


@pytest.fixture
def rules() -> QueueRules:
    return QueueRules(lease_ms=3_000, grant_ms=2_000, worker_seen_ms=1_500)


class Growing(SimEngine):
    """The sim engine as one whose KV memory is the device's, taken page by page."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.worker)

    async def start(self) -> EngineInfo:
        return replace(await super().start(), pooled=False, device="cuda:0")


class Device:
    """What NVML would say of a GPU on which that engine and others live."""

    def __init__(self, worker: Worker, foreign_bytes: int = 0) -> None:
        self.worker = worker
        self.foreign_bytes = foreign_bytes
        worker._measured._gpus = self

    @property
    def free_bytes(self) -> int:
        used = self.worker._room.engine.load().used_tokens or 0
        return TOTAL - self.foreign_bytes - used * KV_BYTES_PER_TOKEN

    def devices(self, own: Any = ()) -> list[GpuStatus]:
        return [GpuStatus("GPU-1", "Fake", TOTAL, self.free_bytes, 0.5, 0, self.foreign_bytes)]


async def beat_of(fleet: Fleet, worker: Worker) -> Heartbeat:
    return next(h for h in await fleet.workers() if h.id == worker.id)


async def test_the_offer_follows_what_others_take_and_give_back(
    server_url: str, rules: QueueRules, fleet: Fleet, redis: Any
) -> None:
    async def limit(worker: Worker) -> int:
        return int(await redis.hget(ShardKeys("s0").worker(worker.id), "limit") or -1)  # not parked yet

    async with working(server_url, rules, Growing, sim_gpu="H100", memory_headroom=0.05) as worker:
        device = Device(worker, 40 * GB)
        half = (TOTAL - 40 * GB - int(0.05 * TOTAL)) // KV_BYTES_PER_TOKEN

        async def is_half() -> bool:
            return abs(await limit(worker) - half) <= 1

        await until(is_half)
        device.foreign_bytes += 20 * GB

        async def has_fallen() -> bool:
            return abs(half - await limit(worker) - 20 * GB // KV_BYTES_PER_TOKEN) <= 3  # each rounded down

        await until(has_fallen)
        beat = await beat_of(fleet, worker)
        assert beat.room is not None and beat.gpu is not None
        assert (beat.room.bound_by, beat.gpu.foreign_bytes) == ("device", 60 * GB)
        device.foreign_bytes -= 20 * GB
        await until(is_half)
        device.foreign_bytes = 0

        async def is_whole() -> bool:
            return await limit(worker) == 427_000

        await until(is_whole)


async def test_what_no_longer_fits_moves_and_comes_back_when_there_is_memory_again(
    server_url: str, rules: QueueRules, client: Client, queue: Queue
) -> None:
    async with working(server_url, rules, Growing, sim_gpu="H100", sim_speed=0.5, memory_headroom=0.01) as worker:
        device = Device(worker)
        requests = [await ask(queue, f"f{i}", 400, 416) for i in range(4)]
        for request in requests:
            await client.wrote(request, 2)
        # Others take all but the headroom and about two requests' worth.
        held = worker._room.engine.load().used_tokens or 0
        room = 2 * 416 - held
        device.foreign_bytes = TOTAL - (held + room) * KV_BYTES_PER_TOKEN - int(0.01 * TOTAL)

        async def some_moved() -> bool:
            assert device.free_bytes > 0, "out of memory"
            return worker._held.overruns >= 1

        await until(some_moved, 20)
        assert sum(h.used_tokens for h in worker._held.holdings()) <= 2 * 416 + PAGE_TOKENS
        device.foreign_bytes = 0
        for request in requests:
            assert await client.ended(request, 20) is RequestState.COMPLETED
    for i, request in enumerate(requests):
        assert (await client.answer(request))[:2] == expected(f"f{i}", 400)
        record = await queue.record(request)
        assert record is not None and record.charged == 0
