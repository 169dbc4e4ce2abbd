"""A worker in this process, on a real server: it takes what fits, writes it, ends it, and leaves cleanly."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.messages import InferenceRequest, InputKind, Sampling
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from dispatch.settings import Settings
from dispatch.states import RequestState, WorkerState
from tests.worker.conftest import Client, until
from worker.engines.base import Chunk, Engine, EngineDead, EngineError, EngineInfo
from worker.engines.registry import engine_for
from worker.engines.sim import SimEngine
from worker.engines.sim_text import Voice, text_of
from worker.gpu import FakeGpus
from worker.worker import Worker


@pytest.fixture
def rules() -> QueueRules:
    return QueueRules(lease_ms=1_500, grant_ms=1_000, worker_seen_ms=1_000, backoff_ms=10, backoff_max_ms=50)


def settings_of(**worker: Any) -> Settings:
    numbers = {"engine": "sim", "sim_speed": math.inf, "heartbeat_s": 0.1, "drain_timeout_s": 5.0, **worker}
    return Settings.model_validate({"worker": numbers})


Made = Callable[[Settings], Engine]


@asynccontextmanager
async def working(url: str, rules: QueueRules, make: Made | None = None, **settings: Any) -> AsyncIterator[Worker]:
    """A worker that is ready; drained and gone afterwards."""
    redis, inbox_redis = connect(url), connect(url, max_connections=2)
    all_settings = settings_of(**settings)

    def engine() -> Engine:
        return make(all_settings) if make else engine_for(all_settings.worker)

    worker = Worker(all_settings, engine, FakeGpus(), Queue(redis, rules), Queue(inbox_redis, rules), Fleet(redis))
    running = asyncio.create_task(worker.run())

    async def is_ready() -> bool:
        return worker.state is not WorkerState.LOADING and worker.state is not WorkerState.STARTING

    await until(is_ready, 40)
    try:
        yield worker
    finally:
        if not worker._draining.is_set():  # a second word would mean: now
            worker.drain()
        try:
            await asyncio.wait_for(running, 10)
        finally:
            await redis.aclose()
            await inbox_redis.aclose()


def expected(prompt: str, count: int) -> tuple[str, tuple[int, ...]]:
    voice = Voice(InferenceRequest("s0.0", "demo", InputKind.COMPLETION, Sampling(count), prompt=prompt))
    tokens = tuple(voice.token(i) for i in range(count))
    return text_of(tokens), tokens


async def test_a_request_is_completed(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules):
        request = await client.ask("hello", 20)
        assert await client.ended(request) is RequestState.COMPLETED
    text, tokens, end = await client.answer(request)
    assert (text, tokens) == expected("hello", 20)
    moments = [end.pop(f"{name}_at_ms") for name in ("created", "begun", "first_output", "ended")]
    assert moments == sorted(moments) and moments[0] > 0 and end.pop("worker").startswith("w-")
    assert end == {
        "state": "completed",
        "attempts": 1,
        "finish_reason": "length",
        "usage": {"prompt_tokens": 2, "completion_tokens": 20, "total_tokens": 22},
    }


async def test_many_at_once_are_each_answered_with_their_own_text(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules, sim_speed=20.0):
        requests = {await client.ask(f"prompt {i}", 30): f"prompt {i}" for i in range(60)}
        for request, prompt in requests.items():
            assert await client.ended(request) is RequestState.COMPLETED
            assert (await client.answer(request))[:2] == expected(prompt, 30)


async def test_a_lone_stream_writes_each_token_and_a_busy_worker_gathers(
    server_url: str, rules: QueueRules, client: Client
) -> None:
    async with working(server_url, rules, sim_gpu="H100", sim_speed=0.3):  # 20 ms a step: instant outruns any writer
        lone = await client.ask("alone", 20)
        await client.ended(lone)
        at = time.monotonic()
        many = [await client.ask(f"one of many {i}", 60) for i in range(8)]
        for request in many:
            await client.ended(request)
        took_s = time.monotonic() - at
    assert len(await client.queue.output(lone)) >= 15
    writes = max([len(await client.queue.output(r)) for r in many])
    assert writes <= took_s * 20 + 3 < 60


async def test_opaque_inputs_and_stop_strings(server_url: str, rules: QueueRules, client: Client) -> None:
    stop = expected("hello", 30)[0][40:50]
    async with working(server_url, rules):
        opaque = await client.ask(kind=InputKind.OPAQUE, input={"n": [1, 2]})
        stopped = await client.ask("hello", 30, stop=(stop,))
        assert await client.ended(opaque) is RequestState.COMPLETED
        assert await client.ended(stopped) is RequestState.COMPLETED
    assert b'"echo":{"n":[1,2]}' in (await client.queue.output(opaque))[0].data
    text, _, end = await client.answer(stopped)
    whole = expected("hello", 30)[0]
    assert text == whole[: whole.index(stop)] and end["finish_reason"] == "stop"


async def test_cancel_stops_the_generation(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules, sim_gpu="H100", kv_tokens=4096) as worker:
        worker._room.engine._speed = 1.0  # type: ignore[attr-defined]
        request = await client.ask("long", 3000)
        await client.wrote(request, 3)
        assert await client.queue.cancel(request) is RequestState.CANCELLED

        async def holds_nothing() -> bool:
            return len(worker._held) == 0 and not worker._room.engine._open  # type: ignore[attr-defined]

        await until(holds_nothing)
        # Its memory is free again: the next one of that size is served.
        following = await client.ask("next", 3000)
        await client.wrote(following, 1)
        await client.queue.cancel(following)


async def test_a_full_room_takes_no_more(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules, kv_tokens=256, sim_gpu="H100", sim_speed=1.0) as worker:
        requests = [await client.ask(f"p{i}", 100) for i in range(6)]  # 112 tokens each: two fit
        states = []
        for request in requests:
            await client.wrote(request, 1)
            states.append([await client.state(r) for r in requests].count(RequestState.RUNNING))
            assert len(worker._held) <= 2
        assert max(states) == 2
        for request in requests:
            await client.queue.cancel(request)


async def test_slots_bound_what_is_held(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules, slots=1, sim_speed=50.0):
        requests = [await client.ask(f"p{i}", 20) for i in range(4)]
        for request in requests:
            assert await client.ended(request) is RequestState.COMPLETED


class Unprobed(SimEngine):
    """A sim engine whose probes always go well."""

    async def probe(self) -> None:
        pass

    async def canary(self) -> tuple[int, ...]:
        return ()


class Scripted(Unprobed):
    """The sim engine, with one fault put in front of it. Calls are counted over all that are made of one script."""

    def __init__(self, settings: Settings, fault: Callable[[int], Exception | None], calls: Iterator[int]) -> None:
        super().__init__(settings.worker)
        self.fault = fault
        self.calls = calls

    async def generate(self, request: InferenceRequest, done: Sequence[int]) -> AsyncIterator[Chunk]:
        error = self.fault(next(self.calls))
        said = 0
        async for chunk in super().generate(request, done):
            yield chunk
            said += 1
            if error is not None and said == 2:
                raise error
        if error is not None:
            raise error


def failing(error: Exception, calls: int = 1) -> Made:
    numbers = itertools.count(1)
    return lambda settings: Scripted(settings, lambda call: error if call <= calls else None, numbers)


async def test_a_retryable_error_continues_where_it_stopped(server_url: str, rules: QueueRules, client: Client) -> None:
    error = EngineError("engine_out_of_memory", "no memory", retryable=True)
    async with working(server_url, rules, failing(error, calls=2), sim_gpu="H100", sim_speed=1.0):
        request = await client.ask("again", 25)
        assert await client.ended(request) is RequestState.COMPLETED
    text, tokens, end = await client.answer(request)
    assert (text, tokens) == expected("again", 25)
    assert end["attempts"] == 3 and end["usage"]["completion_tokens"] == 25


async def test_attempts_run_out(server_url: str, rules: QueueRules, client: Client) -> None:
    error = EngineError("engine_out_of_memory", "no memory", retryable=True)
    async with working(server_url, rules, failing(error, calls=99), sim_gpu="H100", sim_speed=1.0):
        request = await client.ask("again", 25, max_attempts=2)
        assert await client.ended(request) is RequestState.FAILED
    assert (await client.answer(request))[2]["error"]["code"] == "engine_out_of_memory"


async def test_a_bug_in_an_engine_is_charged_and_its_words_stay_here(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules, failing(ValueError("secret prompt"), calls=99)):
        request = await client.ask("x", 25, max_attempts=2)
        assert await client.ended(request) is RequestState.FAILED
    end = (await client.answer(request))[2]
    assert end["error"]["code"] == "internal_error"
    assert "secret" not in str(end)


async def test_an_error_of_the_request_ends_it_at_once(server_url: str, rules: QueueRules, client: Client) -> None:
    error = EngineError("unsupported", "cannot do that", retryable=False)
    async with working(server_url, rules, failing(error)):
        request = await client.ask("x", 25)
        assert await client.ended(request) is RequestState.FAILED
    end = (await client.answer(request))[2]
    assert (end["error"], end["attempts"]) == ({"code": "unsupported", "message": "cannot do that"}, 1)


async def test_what_was_sent_without_token_ids_is_not_continued(server_url: str, rules: QueueRules, client: Client) -> None:
    class Upstream(Unprobed):
        async def generate(self, request: InferenceRequest, done: Sequence[int]) -> AsyncIterator[Chunk]:
            yield Chunk(text="half an answer")
            await asyncio.sleep(0.05)
            raise EngineError("upstream_error", "broke off", retryable=True)

    async with working(server_url, rules, lambda settings: Upstream(settings.worker)):
        request = await client.ask("x", 25)
        assert await client.ended(request) is RequestState.FAILED
    text, _, end = await client.answer(request)
    assert text == "half an answer" and "cannot continue" in end["error"]["message"]


async def test_a_dead_engine_is_replaced_and_its_request_goes_on(server_url: str, rules: QueueRules, client: Client) -> None:
    dying = failing(EngineDead("CUDA error: an illegal memory access"))
    async with working(server_url, rules, dying, sim_gpu="H100", sim_speed=1.0) as worker:
        first, engine = worker.id, worker._room.engine
        request = await client.ask("survive", 25)
        assert await client.ended(request) is RequestState.COMPLETED
        assert worker.id != first and worker._room.engine is not engine
    text, tokens, end = await client.answer(request)
    assert (text, tokens) == expected("survive", 25)
    assert end["attempts"] == 2
    record = await client.queue.record(request)
    assert record is not None and (record.charged, record.crashes) == (1, 1)


async def test_a_barred_worker_goes_on_as_another(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules) as worker:
        first = worker.id
        await client.queue.abandon(first, "a test")

        async def is_another() -> bool:
            return worker.id != first

        await until(is_another)
        request = await client.ask("x", 5)
        assert await client.ended(request) is RequestState.COMPLETED


async def test_it_beats_and_publishes_its_card(server_url: str, rules: QueueRules, fleet: Fleet) -> None:
    async with working(server_url, rules, sim_gpu="L40S", served_name="ours") as worker:

        async def beats() -> bool:
            return [(h.id, h.state) for h in await fleet.workers()] == [(worker.id, WorkerState.READY)]

        await until(beats)
        (beat,) = await fleet.workers()
        assert (beat.state, beat.model, beat.limit_tokens, beat.held) == (WorkerState.READY, "ours", 207_000, 0)
        assert beat.rss_bytes > 0
        card = await fleet.card("ours")
        assert card is not None and card.max_cost_tokens == 207_000
    assert await fleet.workers() == []


async def test_an_engine_that_cannot_start_says_why(
    server_url: str, rules: QueueRules, redis: Any, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(SimEngine):
        async def start(self) -> EngineInfo:
            raise PenstockError("bad_setting", "There is no such folder.", hint="Name one that is there.")

    settings = settings_of()
    worker = Worker(settings, lambda: Broken(settings.worker), FakeGpus(), Queue(redis, rules), Queue(redis, rules), fleet)
    assert await worker.run() == 1
    said = capsys.readouterr().err
    assert "could not start" in said and "There is no such folder." in said and "Name one that is there." in said
    (beat,) = await fleet.workers()
    assert beat.state is WorkerState.GONE and "no such folder" in beat.error


async def test_draining_while_loading_leaves_at_once(server_url: str, rules: QueueRules, redis: Any, fleet: Fleet) -> None:
    class Slow(SimEngine):
        async def start(self) -> EngineInfo:
            self.progress = "weights 41 %"
            await asyncio.Event().wait()
            raise AssertionError

    settings = settings_of()
    worker = Worker(settings, lambda: Slow(settings.worker), FakeGpus(), Queue(redis, rules), Queue(redis, rules), fleet)
    running = asyncio.create_task(worker.run())

    async def says_so() -> bool:
        return [(h.state, h.progress) for h in await fleet.workers()] == [(WorkerState.LOADING, "weights 41 %")]

    await until(says_so)
    worker.drain()
    assert await asyncio.wait_for(running, 5) == 0
    assert await fleet.workers() == []


async def test_drain_finishes_what_it_can_and_gives_back_the_rest_uncharged(
    server_url: str, rules: QueueRules, client: Client
) -> None:
    settings = {"sim_gpu": "H100", "drain_timeout_s": 0.7}
    async with working(server_url, rules, sim_speed=1.0, **settings) as worker:
        short, long = await client.ask("short", 40), await client.ask("long", 400)
        await client.wrote(short)
        await client.wrote(long)
        worker.drain()
    assert await client.state(short) is RequestState.COMPLETED
    assert await client.state(long) is RequestState.QUEUED
    record = await client.queue.record(long)
    assert record is not None and record.charged == 0
    async with working(server_url, rules):
        assert await client.ended(long) is RequestState.COMPLETED
    assert (await client.answer(long))[:2] == expected("long", 400)


async def test_a_second_drain_gives_back_at_once(server_url: str, rules: QueueRules, client: Client) -> None:
    async with working(server_url, rules, sim_gpu="H100", sim_speed=1.0, drain_timeout_s=60.0) as worker:
        long = await client.ask("long", 4000)
        await client.wrote(long)
        worker.drain()
        worker.drain()
    assert await client.state(long) is RequestState.QUEUED
    await client.queue.cancel(long)
