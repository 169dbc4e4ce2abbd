"""Requests that outgrow what they were priced at: the youngest moves, uncharged, its text goes on; nobody fails, nobody loops."""

import asyncio
import math
from typing import Any

import pytest

from dispatch.fleet import Fleet
from dispatch.lengths import Lengths, percentile
from dispatch.messages import Grant, InferenceRequest, InputKind, NewRequest, Offer, Sampling, encode, new_id
from dispatch.pricing import cost_tokens, prompt_tokens
from dispatch.queue import Queue
from dispatch.reports import Heartbeat, ModelCard
from dispatch.rules import QueueRules
from dispatch.settings import Settings
from dispatch.states import RequestState
from tests.worker.conftest import Client, until
from tests.worker.test_worker import expected, working
from worker.engines.sim import SimEngine
from worker.worker import Worker


@pytest.fixture
def rules() -> QueueRules:
    return QueueRules(lease_ms=3_000, grant_ms=2_000, worker_seen_ms=1_500, backoff_ms=10, backoff_max_ms=50)


async def ask(queue: Queue, prompt: str, max_tokens: int, cost: int, **body: Any) -> str:
    """A request that may grow to prompt + max_tokens, priced lower."""
    sampling = Sampling(max_tokens=max_tokens)
    request = InferenceRequest(new_id(), "demo", InputKind.COMPLETION, sampling, prompt=prompt, body=body or {"ignore_eos": True})
    assert cost <= cost_tokens(prompt_tokens(request), max_tokens)
    await queue.enqueue(NewRequest(request.id, "demo", encode(request), InputKind.COMPLETION, cost, 60_000))
    return request.id


async def charged(queue: Queue, request: str) -> int:
    record = await queue.record(request)
    assert record is not None
    return record.charged


async def beat_of(fleet: Fleet, worker: Worker) -> Heartbeat:
    return next(h for h in await fleet.workers() if h.id == worker.id)


class Watched(SimEngine):
    """The sim engine; it remembers when it ran out of memory, and the most it held."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.worker)
        self.overflows = 0
        self.most = 0

    def _step(self, batch: Any) -> Any:
        stepped = super()._step(batch)
        self.most = max(self.most, sum(s.held_tokens for s in self._open))
        return stepped

    def _overflow(self, *args: Any) -> None:
        self.overflows += 1
        super()._overflow(*args)


def engine_of(worker: Worker) -> Watched:
    engine = worker._room.engine
    assert isinstance(engine, Watched)
    return engine


async def test_the_youngest_moves_and_comes_back_and_nobody_is_charged(
    server_url: str, rules: QueueRules, client: Client, queue: Queue, fleet: Fleet
) -> None:
    async with working(server_url, rules, Watched, kv_tokens=512, sim_gpu="H100", sim_speed=1.0) as worker:
        # By their prices all three fit; by what they come to, hardly two.
        requests = []
        for i in range(3):
            requests.append(await ask(queue, f"p{i}", 230, 64))
            await client.runs(requests[i])  # so the last is the youngest in the engine, too
        assert len(worker._held) == 3

        async def has_moved() -> bool:
            return worker._held.overruns > 0

        await until(has_moved)
        room = (await beat_of(fleet, worker)).room
        for request in requests:
            assert await client.ended(request) is RequestState.COMPLETED
        engine = engine_of(worker)
    assert (engine.overflows, engine.most <= 512) == (0, True)  # the engine never had to find out
    assert room is not None
    for i, request in enumerate(requests):
        assert (await client.answer(request))[:2] == expected(f"p{i}", 230)
        assert await charged(queue, request) == 0
    record = await queue.record(requests[2])
    assert record is not None and record.attempt > 1 and record.cost_tokens > 64  # and it costs what it proved to
    assert [(await queue.record(r)).attempt for r in requests[:2]] == [1, 1]  # type: ignore[union-attr]
    # Two that moved would be one too many: after an overrun the rest counts at its most for a while.
    assert worker._held.overruns == 1


async def test_an_engine_that_finds_out_by_itself_moves_the_youngest_too(
    server_url: str, rules: QueueRules, client: Client, queue: Queue
) -> None:
    async with working(server_url, rules, Watched, kv_tokens=512, sim_gpu="H100", sim_speed=2.0) as worker:
        worker._held.relieve = lambda: None  # type: ignore[method-assign]
        requests = [await ask(queue, f"p{i}", 230, 64) for i in range(3)]
        for request in requests:
            assert await client.ended(request) is RequestState.COMPLETED
        assert engine_of(worker).overflows >= 1
    for i, request in enumerate(requests):
        assert (await client.answer(request))[:2] == expected(f"p{i}", 230)
        assert await charged(queue, request) == 0


async def test_what_may_outgrow_all_of_a_worker_goes_to_a_larger_one_at_its_full_price(
    server_url: str, rules: QueueRules, client: Client, queue: Queue, fleet: Fleet
) -> None:
    async with working(server_url, rules, kv_tokens=256, sim_speed=math.inf) as small:
        await fleet.put_card(ModelCard("demo", "sim", 131_072, 1, 2_048), None, publisher="w-large")
        request = await ask(queue, "long", 600, 64)

        async def is_dearer() -> bool:
            record = await queue.record(request)
            return record is not None and record.cost_tokens == cost_tokens(1, 600)

        await until(is_dearer)
        await asyncio.sleep(0)
        assert await client.state(request) in (RequestState.QUEUED, RequestState.RUNNING)
        async with working(server_url, rules, kv_tokens=2_048, sim_speed=math.inf) as large:
            assert await client.ended(request) is RequestState.COMPLETED
            record = await queue.record(request)
            assert record is not None and (record.worker, record.charged) == (large.id, 0)
            assert [past.worker for past in record.story] == [small.id]


async def test_what_no_worker_was_ever_large_enough_for_is_told_with_the_numbers(
    server_url: str, rules: QueueRules, client: Client, queue: Queue
) -> None:
    async with working(server_url, rules, kv_tokens=256, sim_speed=math.inf):
        request = await ask(queue, "long", 600, 64)
        assert await client.ended(request) is RequestState.FAILED
    error = (await client.answer(request))[2]["error"]
    assert error["code"] == "unschedulable" and "608" in error["message"] and "256" in error["message"]


async def test_a_storm_of_underpriced_requests_all_end_well(
    server_url: str, rules: QueueRules, client: Client, queue: Queue
) -> None:
    async with working(server_url, rules, Watched, kv_tokens=1_024, sim_gpu="H100", sim_speed=20.0) as worker:
        requests = [await ask(queue, f"q{i}", 40 + 37 * i % 400, 32) for i in range(40)]
        for request in requests:
            assert await client.ended(request, 40) is RequestState.COMPLETED
        engine = engine_of(worker)
        assert worker._held.overruns >= 2
    assert engine.most <= 1_024
    for i, request in enumerate(requests):
        assert (await client.answer(request))[:2] == expected(f"q{i}", 40 + 37 * i % 400)
        assert await charged(queue, request) == 0


async def test_an_engine_in_its_own_process_that_runs_ahead_fails_nobody(
    server_url: str, rules: QueueRules, client: Client, queue: Queue
) -> None:
    """What is heard of it is some milliseconds, so some pages old: it runs out before its worker can know."""
    common: dict[str, Any] = {"kv_tokens": 1_024, "sim_gpu": "H100", "isolate": True}
    async with working(server_url, rules, sim_speed=20.0, **common):
        requests = [await ask(queue, f"i{i}", 40 + 37 * i % 400, 32) for i in range(30)]
        for request in requests:
            assert await client.ended(request, 40) is RequestState.COMPLETED
    for i, request in enumerate(requests):
        assert (await client.answer(request))[:2] == expected(f"i{i}", 40 + 37 * i % 400)
        assert await charged(queue, request) == 0


async def test_the_fleet_learns_how_long_answers_get(
    server_url: str, rules: QueueRules, client: Client, queue: Queue, redis: Any
) -> None:
    async with working(server_url, rules, sim_speed=math.inf) as worker:
        worker._lengths = Lengths(redis)
        requests = [await client.ask(f"n{i}", 2_000, ignore_eos=False) for i in range(70)]
        for request in requests:
            assert await client.ended(request) is RequestState.COMPLETED
        said = sorted([(await client.answer(r))[2]["usage"]["completion_tokens"] for r in requests])

        async def is_told() -> bool:
            table = await Lengths(redis).table("demo")
            return sum(count for name, count in table.items() if name[0] == "e") == 70

        await until(is_told)
    found = percentile(await Lengths(redis).table("demo"), 0.95)
    assert found is not None and said[66] <= found <= said[-1] * 1.2


async def test_a_price_only_rises_and_only_for_who_holds_the_request(queue: Queue, client: Client) -> None:
    await queue.park(Offer("w-1", "demo", 10_000, 4, 1.0, prefill_weight=1.0))
    request = await ask(queue, "x", 600, 64)
    (grant,) = (await queue.read_inbox("w-1", "0", block_ms=1))[1]
    assert isinstance(grant, Grant)
    assert await queue.reprice(grant, 320) == "ok"
    assert await queue.reprice(grant, 160) == "dup"
    record = await queue.record(request)
    assert record is not None and record.cost_tokens == 320
    assert (await queue.park(Offer("w-1", "demo", 10_000, 4, 1.0, prefill_weight=1.0))).room_tokens == 10_000 - 64
    await queue.park(Offer("w-1", "demo", 100, 4, 1.0, prefill_weight=1.0))
    assert await queue.release(grant) == "ok"
    assert await client.state(request) is RequestState.QUEUED  # 100 would have held what it was priced at
    assert await queue.reprice(grant, 640) == "fenced"
    assert (await queue.park(Offer("w-1", "demo", 320, 4, 1.0, prefill_weight=1.0))).granted == 1
    await queue.cancel(request)
