"""Engines that crash, hang, run out of memory or talk garbage under a worker: it outlives them, and loses nothing."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.messages import InferenceRequest
from dispatch.queue import Queue
from dispatch.reports import Heartbeat
from dispatch.rules import QueueRules
from dispatch.states import ENDINGS, RequestState, WorkerState
from tests.worker.conftest import Client, until
from tests.worker.test_worker import expected, failing, settings_of, working
from worker.engines.base import Chunk, EngineDead, EngineInfo
from worker.engines.process import ProcessEngine
from worker.engines.sim import SimEngine
from worker.gpu import FakeGpus
from worker.health import Health
from worker.held import Held
from worker.life import Failures
from worker.worker import Worker

BREAKABLE = {"sim_faults": True, "isolate": True, "sim_gpu": "H100", "sim_speed": 1.0}


@pytest.fixture
def rules() -> QueueRules:
    return QueueRules(lease_ms=3_000, grant_ms=1_500, worker_seen_ms=1_000, backoff_ms=10, backoff_max_ms=50)


async def beat_of(fleet: Fleet, worker: Worker) -> Heartbeat | None:
    return next((h for h in await fleet.workers() if h.id == worker.id), None)


def child_of(worker: Worker) -> int:
    engine = worker._room.engine
    assert isinstance(engine, ProcessEngine) and engine.pid is not None
    return engine.pid


def test_pauses_double_and_end() -> None:
    failures, seen = Failures(9), []
    while not (failures := failures.one_more()).too_many:
        seen.append(failures.delay_s)
    assert seen == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


async def test_an_idle_engine_that_is_killed_is_replaced(
    server_url: str, rules: QueueRules, client: Client, fleet: Fleet
) -> None:
    async with working(server_url, rules, **BREAKABLE) as worker:
        first, child = worker.id, child_of(worker)
        os.kill(child, signal.SIGKILL)

        async def says_why() -> bool:
            beat = await beat_of(fleet, worker)
            return beat is not None and beat.state is WorkerState.LOADING and "SIGKILL" in beat.progress

        await until(says_why)

        async def is_back() -> bool:
            return worker.state is WorkerState.READY and worker.id != first

        await until(is_back)
        assert child_of(worker) != child
        request = await client.ask("after", 5)
        assert await client.ended(request) is RequestState.COMPLETED
        assert [h.id for h in await fleet.workers()] == [worker.id]


async def test_an_engine_killed_from_outside_makes_nobody_suspect(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules, **BREAKABLE) as worker:
        requests = {await client.ask(f"p{i}", 100): f"p{i}" for i in range(3)}
        for request in requests:
            await client.wrote(request, 3)
        os.kill(child_of(worker), signal.SIGKILL)
        for request, prompt in requests.items():
            assert await client.ended(request) is RequestState.COMPLETED
            assert (await client.answer(request))[:2] == expected(prompt, 100)
            record = await client.queue.record(request)
            assert record is not None and (record.charged, record.crashes, record.attempt) == (1, 0, 2)


async def test_a_hung_engine_is_killed_and_its_request_moves_on(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules, hang_s=1.0, **BREAKABLE) as worker:
        child = child_of(worker)
        request = await client.ask("patience", 100)
        await client.wrote(request, 3)
        os.kill(child, signal.SIGSTOP)
        assert await client.ended(request) is RequestState.COMPLETED
        assert not os.path.exists(f"/proc/{child}")  # noqa: ASYNC240, PTH110
    assert (await client.answer(request))[:2] == expected("patience", 100)
    record = await client.queue.record(request)
    assert record is not None and (record.charged, record.crashes, record.attempt) == (1, 1, 2)


@pytest.mark.parametrize("word", ["[[crash]]", "[[hang]]"])
async def test_the_culprit_is_dead_at_its_second_crash_and_those_beside_it_complete(
    word: str, server_url: str, rules: QueueRules, client: Client
) -> None:
    async with working(server_url, rules, hang_s=0.8, **BREAKABLE) as worker:
        most_beside = 0

        async def look() -> bool:
            nonlocal most_beside
            records = [await client.queue.record(r) for r in [culprit, *beside]]
            suspects = {r.id for r in records if r is not None and r.crashes}
            held = await client.queue.held(worker.id)  # in one look, and after: a suspect stays one
            if suspects.intersection(held):
                most_beside = max(most_beside, len(held))
            await client.queue.sweep()
            return all(r is not None and r.state in ENDINGS for r in records)

        beside = {await client.ask(f"beside {i}", 150): f"beside {i}" for i in range(3)}
        for request in beside:
            await client.wrote(request, 3)
        culprit = await client.ask(f"die {word}", 25, max_attempts=9)
        await until(look, 30)
        assert most_beside == 1  # a suspect runs alone
        for request, prompt in beside.items():
            assert await client.state(request) is RequestState.COMPLETED
            assert (await client.answer(request))[:2] == expected(prompt, 150)
        record = await client.queue.record(culprit)
        assert record is not None and (record.state, record.crashes, record.charged) == (RequestState.FAILED, 2, 2)
        error = (await client.answer(culprit))[2]["error"]
        assert error["code"] == "engine_crashed" and error["dead"]
        following = await client.ask("after", 5)
        assert await client.ended(following) is RequestState.COMPLETED


async def test_out_of_memory_is_the_requests_own_affair(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules, **BREAKABLE) as worker:
        first, child = worker.id, child_of(worker)
        beside = await client.ask("beside", 100)
        await client.wrote(beside, 1)
        request = await client.ask("too much [[oom]]", 25, max_attempts=2)
        assert await client.ended(request) is RequestState.FAILED
        assert await client.ended(beside) is RequestState.COMPLETED
        assert (worker.id, child_of(worker)) == (first, child)
    error = (await client.answer(request))[2]["error"]
    assert error["code"] == "engine_out_of_memory"
    record = await client.queue.record(beside)
    assert record is not None and record.charged == 0


async def test_what_was_granted_and_not_begun_goes_back_uncharged(server_url: str, rules: QueueRules, client: Client) -> None:
    """Two fit, and the third is granted while a cancelled one has not left the engine: it waits for room when all die."""
    async with working(server_url, rules, **BREAKABLE) as worker:
        running = await client.ask("running", 100)
        await client.wrote(running, 3)
        worker._held.until_room = lambda *_: asyncio.Event().wait()  # type: ignore[method-assign,assignment]
        waiting = await client.ask("waiting", 10)

        async def is_granted() -> bool:
            return await client.state(waiting) is RequestState.GRANTED and len(worker._held) == 2

        await until(is_granted)
        del worker._held.until_room  # type: ignore[method-assign]
        os.kill(child_of(worker), signal.SIGSEGV)
        assert await client.ended(waiting) is RequestState.COMPLETED
        assert await client.ended(running) is RequestState.COMPLETED
    records = [await client.queue.record(r) for r in (waiting, running)]
    assert [(r.charged, r.crashes) for r in records if r is not None] == [(0, 0), (1, 1)]


async def test_engines_that_die_again_and_again_end_the_worker(
    server_url: str, rules: QueueRules, redis: Any, fleet: Fleet, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(engine_failures=2)
    make = failing(EngineDead("Xid 79: the GPU has fallen off the bus"), calls=99)
    worker = Worker(settings, lambda: make(settings), FakeGpus(), Queue(redis, rules), Queue(redis, rules), fleet)
    running = asyncio.create_task(worker.run())
    requests = [await client.ask(f"p{i}", 10, max_attempts=9) for i in range(2)]
    assert await asyncio.wait_for(running, 15) == 1
    said = capsys.readouterr().err
    assert "died 2 times without completing" in said and "Xid 79" in said and "  do:  " in said
    (beat,) = [h for h in await fleet.workers() if h.state is WorkerState.GONE]
    assert "Xid 79" in beat.error
    for request in requests:
        record = await client.queue.record(request)
        assert record is not None
        # The last of its engines' deaths moved them on, too: they wait for another worker, none is lost.
        assert record.state in (RequestState.QUEUED, RequestState.FAILED)
        await client.queue.cancel(request)


async def test_a_completed_request_forgives(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules, engine_failures=2, **BREAKABLE) as worker:
        for i in range(3):
            child = child_of(worker)
            os.kill(child, signal.SIGKILL)

            async def is_back(child: int = child) -> bool:
                return worker.state is WorkerState.READY and child_of(worker) != child

            await until(is_back)
            request = await client.ask(f"p{i}", 5)
            assert await client.ended(request) is RequestState.COMPLETED


async def test_an_engine_that_does_not_come_back_is_tried_again(server_url: str, rules: QueueRules, client: Client) -> None:
    class SecondFails(SimEngine):
        made = 0

        async def start(self) -> EngineInfo:
            SecondFails.made += 1
            if SecondFails.made == 2:
                raise PenstockError("engine_out_of_memory", "CUDA out of memory: the old engine's is not free yet")
            return await super().start()

        async def generate(self, request: InferenceRequest, done: Sequence[int]) -> AsyncIterator[Chunk]:
            async for chunk in super().generate(request, done):
                yield chunk
                if SecondFails.made == 1 and request.prompt == "die":
                    raise EngineDead("it fell over")

    async with working(server_url, rules, lambda settings: SecondFails(settings.worker)):
        request = await client.ask("die", 30)
        assert await client.ended(request) is RequestState.COMPLETED
        assert SecondFails.made == 3


# ---- deep health


class Counting(SimEngine):
    """Counts its probes; can be made to fail them."""

    probes = 0
    failing = False
    deaf = False

    async def probe(self) -> None:
        Counting.probes += 1
        if self.failing:
            raise RuntimeError
        if self.deaf:
            await asyncio.Event().wait()
        await super().probe()


async def test_an_idle_engine_is_probed_and_its_heartbeat_says_so(server_url: str, rules: QueueRules, fleet: Fleet) -> None:
    Counting.probes = 0
    async with working(server_url, rules, lambda s: Counting(s.worker), probe_after_s=0.2) as worker:

        async def was_probed() -> bool:
            beat = await beat_of(fleet, worker)
            return Counting.probes >= 3 and beat is not None and beat.probe is not None and beat.probe.ok

        await until(was_probed)


async def test_nothing_is_probed_while_tokens_flow(server_url: str, rules: QueueRules, client: Client) -> None:
    numbers = {"probe_after_s": 0.2, "sim_gpu": "H100", "sim_speed": 0.5}
    async with working(server_url, rules, lambda s: Counting(s.worker), **numbers):
        request = await client.ask("long", 100)
        await client.wrote(request, 1)
        before = Counting.probes
        assert await client.ended(request) is RequestState.COMPLETED  # takes 1.2 s
        assert Counting.probes == before

        async def is_probed_again() -> bool:
            return Counting.probes > before

        await until(is_probed_again)


async def test_an_engine_that_does_not_answer_a_probe_is_replaced(server_url: str, rules: QueueRules, client: Client) -> None:
    numbers = {"probe_after_s": 0.2, "probe_timeout_s": 0.3}
    async with working(server_url, rules, lambda s: Counting(s.worker), **numbers) as worker:
        engine = worker._room.engine
        engine.deaf = True  # type: ignore[attr-defined]

        async def is_another() -> bool:
            return worker._room.engine is not engine and worker.state is WorkerState.READY

        await until(is_another)
        request = await client.ask("x", 5)
        assert await client.ended(request) is RequestState.COMPLETED


async def test_a_canary_that_changes_its_tune_is_quarantined(
    server_url: str, rules: QueueRules, client: Client, fleet: Fleet
) -> None:
    async with working(server_url, rules, probe_after_s=0.3, **BREAKABLE) as worker:
        request = await client.ask("say [[garbage]]", 10)
        assert await client.ended(request) is RequestState.COMPLETED

        async def is_quarantined() -> bool:
            beat = await beat_of(fleet, worker)
            return beat is not None and beat.state is WorkerState.QUARANTINED

        await until(is_quarantined)
        beat = await beat_of(fleet, worker)
        assert beat is not None and "canary" in beat.error and beat.probe is not None and not beat.probe.ok
        waiting = await client.ask("nobody takes this", 10)
        parked = (await client.queue.stats("demo")).parked
        assert parked == 0 and await client.state(waiting) is RequestState.QUEUED
        await client.queue.cancel(waiting)
    assert worker.state is WorkerState.DRAINING  # an operator's SIGTERM ends it as any other
    assert await fleet.workers() == []


class Choir(SimEngine):
    """An engine whose canary says what it is told to."""

    def __init__(self, *said: tuple[int, ...]) -> None:
        super().__init__(settings_of().worker)
        self.said = list(said)
        self.during = lambda: None

    async def probe(self) -> None:
        pass

    async def canary(self) -> tuple[int, ...]:
        self.during()
        return self.said.pop(0)


async def test_a_canary_is_asked_twice_and_not_judged_among_requests() -> None:
    health = Health(Held(), after_s=1.0, timeout_s=1.0)
    engine = Choir((1, 2), (9, 9), (1, 2))
    assert await health.first(engine) is None
    assert await health.first(engine) is None and engine.said == []
    engine = Choir((9, 9), (8, 8))
    sick = await health.first(engine)
    assert sick is not None and sick.garbage and health.last is not None and not health.last.ok
    engine = Choir((9, 9))
    engine.during = health.flowed
    assert await health.first(engine) is None and engine.said == []
