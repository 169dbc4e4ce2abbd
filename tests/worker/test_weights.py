"""Weights that are measured: they find the truth from a wrong seed, and the work follows them."""

import pytest

from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.reports import Heartbeat
from dispatch.rules import QueueRules
from dispatch.states import RequestState
from tests.worker.conftest import Client, until
from tests.worker.test_worker import working
from worker.engines.sim_gpus import SIM_GPUS
from worker.worker import Worker

SLOW = 0.2  # so that a busy machine keeps the pace


@pytest.fixture
def rules() -> QueueRules:
    return QueueRules(lease_ms=5_000, grant_ms=3_000, worker_seen_ms=3_000)


async def beat_of(fleet: Fleet, worker: Worker) -> Heartbeat:
    return next(h for h in await fleet.workers() if h.id == worker.id)


async def test_a_weight_follows_the_speed_that_is_measured(
    server_url: str, rules: QueueRules, client: Client, queue: Queue, fleet: Fleet
) -> None:
    true = SIM_GPUS["H100"].tokens_per_s * SLOW
    async with working(server_url, rules, sim_gpu="H100", sim_speed=SLOW, weight_seed=100.0) as worker:
        assert (await beat_of(fleet, worker)).weight == 100.0
        requests = [await client.ask(f"w{i}", 3_000) for i in range(40)]

        async def is_right() -> bool:
            return abs((await beat_of(fleet, worker)).weight / true - 1) < 0.08

        await until(is_right, 20)
        for request in requests:
            await queue.cancel(request)

        async def is_idle() -> bool:
            beat = await beat_of(fleet, worker)
            return beat.held == 0 and beat.tokens_per_s == 0.0

        await until(is_idle)
        assert abs((await beat_of(fleet, worker)).weight / true - 1) < 0.1  # idleness changes nothing


async def test_a_seed_that_is_to_stay_stays(server_url: str, rules: QueueRules, client: Client, fleet: Fleet) -> None:
    async with working(server_url, rules, sim_gpu="H100", sim_speed=4.0, weight_seed=100.0, weight_measured=False) as worker:
        assert await client.ended(await client.ask("x", 300)) is RequestState.COMPLETED
        assert (await beat_of(fleet, worker)).weight == 100.0


async def test_at_saturation_the_work_is_shared_as_the_weights_say(
    server_url: str, rules: QueueRules, client: Client, queue: Queue, fleet: Fleet
) -> None:
    """Seeds that are wrong the other way round; full batches of 32, the size that weights speak of."""
    async with (
        working(server_url, rules, sim_gpu="H100", weight_seed=100.0, sim_speed=SLOW, slots=32) as fast,
        working(server_url, rules, sim_gpu="L40S", weight_seed=9_000.0, sim_speed=SLOW, slots=32) as slow,
    ):
        requests = [await client.ask(f"s{i}", 3_000) for i in range(80)]
        true = SIM_GPUS["H100"].tokens_per_s / SIM_GPUS["L40S"].tokens_per_s
        spoken: dict[str, int] = {}

        async def weights_are_right() -> bool:
            weights = [(await beat_of(fleet, worker)).weight for worker in (fast, slow)]
            return abs(weights[0] / weights[1] / true - 1) < 0.1

        def said(worker: Worker) -> int:
            return sum(execution.growth.spoken_tokens for execution in worker._held)

        await until(weights_are_right, 20)
        for worker in (fast, slow):
            assert len(worker._held) == 32
            spoken[worker.id] = said(worker)

        async def much_was_said() -> bool:
            return said(slow) - spoken[slow.id] > 700

        await until(much_was_said, 20)
        share = (said(fast) - spoken[fast.id]) / (said(slow) - spoken[slow.id])
        weights = [(await beat_of(fleet, worker)).weight for worker in (fast, slow)]
        assert abs(share / (weights[0] / weights[1]) - 1) < 0.1
        for request in requests:
            await queue.cancel(request)
