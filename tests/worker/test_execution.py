"""One request's work alone: what gathers, what an error becomes, and that a lost lease ends it in silence."""

import asyncio

import msgspec
import pytest

from dispatch.errors import PenstockError
from dispatch.messages import EntryKind, FinishReason, Grant, LogEntry, Offer
from dispatch.queue import Queue
from dispatch.settings import WorkerSettings
from dispatch.states import RequestState
from tests.worker.conftest import Client
from worker.engines.base import Chunk, EngineDead, EngineError
from worker.engines.sim import SimEngine
from worker.execution import Execution
from worker.growth import Around
from worker.heartbeat import Pace, Steps
from worker.outcome import Completed, Crashed, Failed, GivenBack, Lost, Moved, Outcome, Retryable, outcome_of
from worker.output import Gathered, tokens_done


async def granted(queue: Queue, client: Client, max_tokens: int, worker: str = "w-test") -> tuple[Execution, SimEngine]:
    """An execution of a fresh request, not yet run."""
    engine = SimEngine(WorkerSettings(engine="sim", sim_gpu="H100"))
    info = await engine.start()
    await queue.park(Offer(worker, "demo", info.limit_tokens, info.slots, info.weight))
    await client.ask("hello", max_tokens)
    (grant,) = (await queue.read_inbox(worker, "0", block_ms=1))[1]
    assert isinstance(grant, Grant)

    async def at_once(execution: Execution) -> None:
        pass

    return Execution(grant, queue, engine, info, until_room=at_once, is_busy=lambda: False), engine


async def test_it_completes(queue: Queue, client: Client) -> None:
    execution, _ = await granted(queue, client, 10)
    assert isinstance(await execution.run(), Completed)
    assert await client.state(execution.grant.request) is RequestState.COMPLETED


async def test_a_lost_lease_ends_it_and_nothing_more_is_written(queue: Queue, client: Client) -> None:
    execution, engine = await granted(queue, client, 1000)
    running = asyncio.create_task(execution.run())
    await client.wrote(execution.grant.request, 2)
    await queue.abandon("w-test", "a test")
    assert isinstance(await asyncio.wait_for(running, 5), Lost)
    assert not engine._open  # the generation was closed
    written = len(await queue.output(execution.grant.request))
    record = await queue.record(execution.grant.request)
    assert record is not None and (record.state, record.seq) == (RequestState.QUEUED, written)
    await client.queue.cancel(execution.grant.request)


async def test_a_gap_gives_it_back_uncharged(queue: Queue, client: Client) -> None:
    execution, _ = await granted(queue, client, 1000)
    running = asyncio.create_task(execution.run())
    await client.wrote(execution.grant.request, 2)
    execution._seq += 5
    assert isinstance(await asyncio.wait_for(running, 5), GivenBack)
    record = await queue.record(execution.grant.request)
    assert record is not None and record.charged == 0 and record.attempt >= 1
    await client.queue.cancel(execution.grant.request)


async def test_given_back_before_it_began(queue: Queue, client: Client) -> None:
    execution, engine = await granted(queue, client, 10)
    execution.give_back()
    assert isinstance(await execution.run(), GivenBack)
    assert engine.steps() == 0
    await client.queue.cancel(execution.grant.request)


async def test_what_is_moved_as_it_begins_never_reaches_the_engine(queue: Queue, client: Client) -> None:
    """Beside those held there its prompt has no place: not for one step, and not for the steps until it is closed."""
    execution, engine = await granted(queue, client, 10)

    class Full(Around):
        def begun(self, pages: int) -> None:
            execution.move("there is no room")

    execution._around = Full()
    assert isinstance(await execution.run(), Moved)
    assert engine.steps() == 0 and not execution.generating
    record = await queue.record(execution.grant.request)
    assert record is not None and (record.attempt, record.charged) == (2, 0)  # given back, and met anew
    await client.queue.cancel(execution.grant.request)


async def test_an_input_that_cannot_be_read_is_left_to_a_newer_worker(queue: Queue, client: Client, redis: object) -> None:
    execution, _ = await granted(queue, client, 10)
    request = execution.grant.request
    await redis.set(f"{{s0}}:input:{request}", b"not json", keepttl=True)  # type: ignore[attr-defined]
    outcome = await execution.run()
    assert isinstance(outcome, Retryable) and outcome.code == "bad_record"
    record = await queue.record(request)
    assert record is not None and (record.state, record.charged) == (RequestState.WAITING, 1)
    await client.queue.cancel(request)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (EngineError("engine_out_of_memory", "m", retryable=True), Retryable("engine_out_of_memory", "m")),
        (EngineError("unsupported", "m", retryable=False), Failed("unsupported", "m")),
        (EngineDead("SIGKILL"), Crashed("SIGKILL")),
        (EngineDead(), Crashed("the engine died without a word")),
        (PenstockError("bad_record", "m"), Failed("bad_record", "m")),
        (PenstockError("redis_unavailable", "m"), Retryable("redis_unavailable", "m")),
        (KeyError("a prompt"), Retryable("internal_error", "A bug in the worker: KeyError.")),
    ],
)
def test_the_mapping_of_errors(error: Exception, outcome: Outcome) -> None:
    assert outcome_of(error) == outcome


def test_text_and_tokens_gather_and_outputs_stay_apart() -> None:
    gathered = Gathered()
    for chunk in (Chunk("a", (1,)), Chunk("", (2,)), Chunk("é", ()), Chunk(), Chunk(output={"x": 1}), Chunk(output=[2])):
        gathered.add(chunk)
    gathered.add(Chunk("z", (9,), finish_reason=FinishReason.STOP))
    assert [msgspec.json.decode(gathered.take()) for _ in range(4)] == [
        {"text": "aé", "tokens": [1, 2]},
        {"output": {"x": 1}},
        {"output": [2]},
        {"text": "z", "tokens": [9]},
    ]
    assert gathered.take() == b"" and gathered.size == 0


def test_text_may_contain_anything() -> None:
    gathered = Gathered()
    gathered.add(Chunk('\x00"\\\n\u2028\ud800🚀'))
    assert msgspec.json.decode(gathered.take())["text"] == '\x00"\\\n\u2028?🚀'


def entry(data: bytes, kind: EntryKind = EntryKind.CHUNK) -> LogEntry:
    return LogEntry("s0.1", 1, 1, kind, data, "0" * 16)


def test_what_was_done_is_the_tokens_in_the_log() -> None:
    assert tokens_done([entry(b'{"text":"a","tokens":[1,2]}'), entry(b'{"text":"b","tokens":[3]}')]) == [1, 2, 3]
    assert tokens_done([]) == []
    for data in (b'{"text":"a","tokens":[]}', b'{"output":{"x":1}}'):
        with pytest.raises(EngineError, match="cannot continue"):
            tokens_done([entry(data)])


def test_steps_that_stop_are_seen_only_while_some_are_owed() -> None:
    count, hung = [0], []
    steps = Steps(lambda: count[0], lambda *found: hung.append(found), longest_gap_s=4.0)
    steps.hang_s = 10.0
    assert steps.look(True, 100.0) is Pace.STEADY  # the first count it ever sees is news
    assert steps.look(True, 104.0) is Pace.STEADY
    assert steps.look(True, 107.0) is Pace.STALLED
    count[0] += 1
    assert steps.look(True, 108.0) is Pace.STEADY
    assert steps.look(False, 110.0) is Pace.STEADY  # idle
    assert steps.look(True, 114.0) is Pace.STEADY
    assert steps.look(True, 118.0) is Pace.STALLED and not hung
    assert steps.look(True, 121.0) is Pace.HUNG and hung == [(11.0, 114.0)]


def test_who_comes_to_a_silent_engine_is_not_its_silence() -> None:
    """The one that silenced it has left (cancelled, its lease lost): the next one only waits there."""
    hung: list[tuple[float, float]] = []
    steps = Steps(lambda: 7, lambda *found: hung.append(found), longest_gap_s=4.0)
    steps.hang_s = 10.0
    steps.look(False, 100.0)
    assert steps.look(True, 101.0) is Pace.STEADY
    assert steps.look(False, 104.0) is Pace.STEADY, "it left"
    for now in (106.0, 110.0, 114.0, 118.0):
        steps.look(True, now)
    assert hung[0][1] == 101.0


def test_a_process_that_was_stopped_itself_saw_no_hang() -> None:
    hung: list[tuple[float, float]] = []
    steps = Steps(lambda: 7, lambda *found: hung.append(found), longest_gap_s=2.0)
    steps.hang_s = 10.0
    steps.look(True, 100.0)
    assert steps.look(True, 101.0) is Pace.STEADY
    assert steps.look(True, 3600.0) is Pace.STEADY and not hung


async def test_redis_that_never_comes_back_ends_the_wait(queue: Queue, client: Client) -> None:
    execution, engine = await granted(queue, client, 1000)
    running = asyncio.create_task(execution.run())
    await client.wrote(execution.grant.request, 1)
    execution._give_up_s = 0.0

    async def away(*_: object, **__: object) -> None:
        from redis.exceptions import ConnectionError

        raise ConnectionError("away")

    real, execution._queue.append = queue.append, away  # type: ignore[method-assign, assignment]
    try:
        assert await asyncio.wait_for(running, 5) == Lost("Redis was away for too long")
    finally:
        queue.append = real  # type: ignore[method-assign]
    assert not engine._open
    await client.queue.cancel(execution.grant.request)
