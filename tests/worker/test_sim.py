"""The sim engine: the same text whatever the batch, the card or the attempt; honest about time and memory."""

import asyncio
import time
from contextlib import aclosing

import pytest

from dispatch.errors import PenstockError
from dispatch.messages import FinishReason, InferenceRequest, InputKind, Sampling
from dispatch.settings import WorkerSettings
from worker.engines.base import Chunk, EngineError
from worker.engines.sim import SimEngine
from worker.engines.sim_text import text_of


def asked(prompt: str = "hello", max_tokens: int = 40, **more: object) -> InferenceRequest:
    sampling = Sampling(max_tokens=max_tokens, stop=more.pop("stop", ()))  # type: ignore[arg-type]
    return InferenceRequest("s0.1", "m", InputKind.COMPLETION, sampling, prompt=prompt, **more)  # type: ignore[arg-type]


async def started(**settings: object) -> SimEngine:
    engine = SimEngine(WorkerSettings.model_validate({"engine": "sim", "sim_speed": float("inf"), **settings}))
    await engine.start()
    return engine


async def heard(engine: SimEngine, request: InferenceRequest, done: tuple[int, ...] = ()) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request, done)]


def said(chunks: list[Chunk]) -> str:
    return "".join(c.text for c in chunks)


def tokens(chunks: list[Chunk]) -> tuple[int, ...]:
    return tuple(t for c in chunks for t in c.tokens)


async def test_same_text_alone_in_a_batch_and_on_another_gpu() -> None:
    engine = await started()
    alone = [said(await heard(engine, asked(f"prompt {i}"))) for i in range(20)]
    other = await started(sim_gpu="H200")
    together = await asyncio.gather(*(heard(other, asked(f"prompt {i}")) for i in range(20)))
    assert [said(c) for c in together] == alone
    assert len(set(alone)) == 20


@pytest.mark.parametrize("stop", [(), (" the river",), (",",), ("水", " 🚀")])
async def test_any_cut_continues_exactly(stop: tuple[str, ...]) -> None:
    engine = await started()
    request = asked("where does it go on?", 60, stop=stop)
    whole = await heard(engine, request)
    assert tokens(whole)[-1:] != ()
    for cut in range(len(tokens(whole))):
        done = tokens(whole)[:cut]
        rest = await heard(engine, request, done)
        assert text_of(done) + said(rest) == said(whole)
        assert rest[-1].finish_reason == whole[-1].finish_reason
        assert rest[-1].completion_tokens == whole[-1].completion_tokens


async def test_max_tokens_is_length_and_the_natural_end_is_stop() -> None:
    engine = await started()
    short = await heard(engine, asked(max_tokens=5))
    assert (short[-1].finish_reason, len(tokens(short)), short[-1].completion_tokens) == (FinishReason.LENGTH, 5, 5)
    natural = await heard(engine, asked(max_tokens=10_000))
    assert natural[-1].finish_reason is FinishReason.STOP
    forced = await heard(engine, asked(max_tokens=1_000, body={"ignore_eos": True}))
    assert forced[-1].completion_tokens == 1_000
    assert tokens(forced)[: len(tokens(natural))] == tokens(natural)


async def test_what_was_already_done_is_not_computed_again() -> None:
    engine = await started()
    whole = await heard(engine, asked(max_tokens=30))
    before = engine.steps()
    again = await heard(engine, asked(max_tokens=30), tokens(whole))
    assert again == [Chunk(finish_reason=whole[-1].finish_reason, prompt_tokens=2, completion_tokens=30)]
    assert engine.steps() == before


async def test_a_stop_string_is_never_sent_not_even_its_beginning() -> None:
    engine = await started(sim_speed=200.0)  # slow enough for several chunks
    free = said(await heard(engine, asked(max_tokens=60)))
    stop = free[40:52]
    chunks = await heard(engine, asked(max_tokens=60, stop=(stop,)))
    assert said(chunks) == free[: free.index(stop)]
    assert chunks[-1].finish_reason is FinishReason.STOP
    assert len(chunks) > 3


async def test_text_has_characters_of_several_bytes() -> None:
    text = said(await heard(await started(), asked(max_tokens=400, body={"ignore_eos": True})))
    assert {len(c.encode()) for c in text} == {1, 2, 3, 4}


async def test_opaque_input_gives_one_output() -> None:
    engine = await started()
    request = InferenceRequest("s0.1", "m", InputKind.OPAQUE, Sampling(max_tokens=16), input={"b": 1, "a": [2]})
    (chunk,) = await heard(engine, request)
    assert chunk.output["echo"] == {"b": 1, "a": [2]}
    assert chunk.finish_reason is FinishReason.STOP
    assert [chunk] == await heard(engine, request)


async def test_steps_take_the_time_of_the_card() -> None:
    engine = await started(sim_gpu="H100", sim_speed=2.0)
    at = time.monotonic()
    await heard(engine, asked(max_tokens=50, body={"ignore_eos": True}))
    took = time.monotonic() - at
    assert 0.14 < took < 0.6  # 50 steps of 6 ms, twice as fast, on a machine that may be busy


async def test_over_its_memory_the_one_that_asks_fails_and_the_others_go_on() -> None:
    engine = await started(kv_tokens=112)
    body = {"ignore_eos": True}
    fits, too_much = await asyncio.gather(
        heard(engine, asked(max_tokens=60, body=body)),
        heard(engine, asked("x", max_tokens=100, body=body)),
        return_exceptions=True,
    )
    assert isinstance(fits, list) and fits[-1].completion_tokens == 60
    assert isinstance(too_much, EngineError)
    assert (too_much.code, too_much.retryable) == ("engine_out_of_memory", True)
    # All was freed: the same request alone fits.
    assert (await heard(engine, asked("x", max_tokens=100, body=body)))[-1].completion_tokens == 100


async def test_closing_the_iterator_frees_its_memory_and_stops_the_steps() -> None:
    engine = await started(kv_tokens=128, sim_speed=50.0)
    body = {"ignore_eos": True}
    async with aclosing(engine.generate(asked(max_tokens=110, body=body), ())) as answer:  # type: ignore[type-var]
        await anext(answer)
    assert (await heard(engine, asked("y", max_tokens=110, body=body)))[-1].completion_tokens == 110
    before = engine.steps()
    await asyncio.sleep(0.02)
    assert engine.steps() == before


async def test_an_instant_engine_lets_others_run() -> None:
    engine = await started()
    stream = asyncio.create_task(heard(engine, asked(max_tokens=20_000, body={"ignore_eos": True})))
    turns = 0
    while not stream.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 1_000


async def test_probe_and_costs() -> None:
    engine = await started()
    await engine.probe()
    assert engine.steps() > 0
    assert engine.cost(asked("12345678", max_tokens=30)).tokens == 32
    assert engine.cost(asked("12345678", max_tokens=31)).tokens == 48


async def test_unknown_gpu_names_those_there_are() -> None:
    with pytest.raises(PenstockError, match="no GPU 'B200'") as failed:
        SimEngine(WorkerSettings(engine="sim", sim_gpu="B200"))
    assert "H200, H100, A100, L40S, A10" in failed.value.hint


async def test_a_prompt_beyond_the_context_is_refused_with_the_numbers() -> None:
    with pytest.raises(EngineError, match="131072") as failed:
        await heard(await started(), asked("x" * 4 * 131_072))
    assert not failed.value.retryable
