"""The transformers engine on the real demo model: one engine for the whole module."""

import asyncio
import re
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from dispatch.errors import PenstockError
from dispatch.messages import FinishReason, InferenceRequest, InputKind, Sampling
from dispatch.settings import WorkerSettings
from tests.worker.conftest import until
from worker.engines.base import EngineDead, EngineError, EngineInfo
from worker.engines.transcript import Transcript
from worker.engines.transformers import TransformersEngine
from worker.engines.transformers_batching import PAGE_TOKENS
from worker.engines.transformers_loading import DEMO_FOLDER, LoadedModel, locate

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPTS = [
    "What is a penstock?", "Hello!", "Why is the sky blue?", "Count to ten.", "Tell me about bread.", "写一首诗", "🌊🌊🌊",
    "Erzähl mir etwas über Wasser", "How does a turbine work?", "What is the difference between a lake and the sea?",
    "Tell me a joke.", "Who are you?", "x", "Give me advice about a queue.", "Write a poem about snow.", "déjà vu",
]  # fmt: skip


@dataclass
class Answer:
    text: str
    ids: list[int]
    chunks: list[tuple[str, tuple[int, ...]]]
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started() -> AsyncIterator[tuple[TransformersEngine, EngineInfo]]:
    engine = TransformersEngine(WorkerSettings(device="cpu"))
    info = await engine.start()
    yield engine, info
    await engine.close()


@pytest.fixture
def engine(started: tuple[TransformersEngine, EngineInfo]) -> TransformersEngine:
    return started[0]


def chat(text: str, *, max_tokens: int = 200, temperature: float = 0.0, **sampling: object) -> InferenceRequest:
    return InferenceRequest(
        id="r",
        model="demo",
        kind=InputKind.CHAT,
        messages=({"role": "user", "content": text},),
        sampling=Sampling(max_tokens=max_tokens, temperature=temperature, **sampling),
    )


async def answer(engine: TransformersEngine, request: InferenceRequest, done: Sequence[int] = ()) -> Answer:
    chunks = []
    async for chunk in engine.generate(request, done):
        chunks.append(chunk)
    last = chunks[-1]
    return Answer(
        "".join(chunk.text for chunk in chunks),
        [token for chunk in chunks for token in chunk.tokens],
        [(chunk.text, chunk.tokens) for chunk in chunks],
        last.finish_reason,
        last.prompt_tokens,
        last.completion_tokens,
    )


async def until_all_free(engine: TransformersEngine) -> None:
    async def all_free() -> bool:
        return engine.free_tokens() == engine._limit_tokens

    await until(all_free, timeout_s=2)


async def test_it_says_what_it_is(started: tuple[TransformersEngine, EngineInfo]) -> None:
    engine, info = started
    assert engine.progress == ""
    assert info.card.name == "demo"
    assert info.card.context_tokens == 2048
    assert info.card.kv_bytes_per_token == 4 * 2 * 32 * 2 * 4  # layers, kv heads, head size, key and value, float32
    assert info.card.max_cost_tokens == info.limit_tokens == engine.free_tokens()
    assert info.weight > 0
    assert info.tokenizer is not None
    assert info.tokenizer.eos_token_ids == (2,)
    assert "<|assistant|>" in info.tokenizer.chat_template


async def test_the_thread_that_loads_is_over_once_it_runs() -> None:
    """As long as it lives, libgomp keeps its team, and the generation loop's own sleeps at every barrier."""
    loaded_by: list[threading.Thread] = []

    class Watched(TransformersEngine):
        def _load(self) -> tuple[LoadedModel, str]:
            loaded_by.append(threading.current_thread())
            return super()._load()

    engine = Watched(WorkerSettings(device="cpu", kv_tokens=512, slots=2))
    await engine.start()
    try:

        async def over() -> bool:
            return not loaded_by[0].is_alive()

        assert loaded_by[0] is not threading.main_thread()
        await until(over, timeout_s=5)
    finally:
        await engine.close()


async def test_it_answers_in_readable_english_and_ends_by_itself(engine: TransformersEngine) -> None:
    got = await answer(engine, chat("What is a turbine?"))
    assert got.finish_reason is FinishReason.STOP
    assert 30 <= got.completion_tokens == len(got.ids) <= 120
    assert re.fullmatch(r"[A-Za-z ,.'?!]+", got.text)
    assert "turbine" in got.text
    assert len(got.chunks) > 5  # it streams


async def test_many_at_once_say_what_each_says_alone(engine: TransformersEngine) -> None:
    alone = [await answer(engine, chat(text)) for text in PROMPTS]
    together = await asyncio.gather(*(answer(engine, chat(text)) for text in PROMPTS))
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.ids for a in together] == [a.ids for a in alone]
    assert len({a.text for a in alone}) >= len(PROMPTS) // 2


async def test_odd_tokens_stream_as_the_text_of_decoding_them_at_once(engine: TransformersEngine) -> None:
    # So hot that tokens are nearly random: single bytes of characters, special tokens, everything.
    for seed in range(8):
        got = await answer(engine, chat("go", max_tokens=60, temperature=50.0, seed=seed))
        assert got.text == engine._decode(got.ids)
        assert len(got.ids) == got.completion_tokens


async def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(engine: TransformersEngine) -> None:
    wild = {"max_tokens": 40, "temperature": 1.5}
    alone = await answer(engine, chat("Tell me a story.", seed=7, **wild))
    crowd = await asyncio.gather(
        answer(engine, chat("Tell me a story.", seed=7, **wild)), *(answer(engine, chat(text, **wild)) for text in PROMPTS)
    )
    other = await answer(engine, chat("Tell me a story.", seed=8, **wild))
    assert crowd[0].ids == alone.ids
    assert other.ids != alone.ids


async def test_top_k_and_top_p_narrow_the_choice_down_to_the_greedy_one(engine: TransformersEngine) -> None:
    greedy = await answer(engine, chat("Tell me about tea.", max_tokens=40))
    by_k = await answer(engine, chat("Tell me about tea.", max_tokens=40, temperature=30.0, top_k=1))
    by_p = await answer(engine, chat("Tell me about tea.", max_tokens=40, temperature=30.0, top_p=1e-6))
    free = await answer(engine, chat("Tell me about tea.", max_tokens=40, temperature=30.0))
    assert by_k.ids == by_p.ids == greedy.ids != free.ids


async def test_max_tokens_cuts_with_the_reason_length(engine: TransformersEngine) -> None:
    whole = await answer(engine, chat("Tell me about rain."))
    cut = await answer(engine, chat("Tell me about rain.", max_tokens=7))
    assert (cut.finish_reason, cut.completion_tokens, cut.ids) == (FinishReason.LENGTH, 7, whole.ids[:7])
    assert whole.text.startswith(cut.text)


async def test_stop_strings_are_found_across_tokens_and_never_shown(engine: TransformersEngine) -> None:
    whole = await answer(engine, chat("Tell me about snow."))
    for start in range(20, 80, 7):
        stop = whole.text[start : start + 9]  # begins and ends in the middle of tokens
        got = await answer(engine, chat("Tell me about snow.", stop=(stop, "never said")))
        assert got.text == whole.text[: whole.text.index(stop)]
        assert got.finish_reason is FinishReason.STOP
    await until_all_free(engine)


@pytest.mark.parametrize("sampling", [{}, {"stop": ("blanket", "zzz")}, {"temperature": 2.0, "seed": 3}, {"max_tokens": 23}])
async def test_a_later_attempt_goes_on_where_the_first_one_stopped(engine: TransformersEngine, sampling: dict) -> None:
    request = chat("Tell me about snow.", **{"max_tokens": 80, **sampling})
    whole = await answer(engine, request)
    for cut in (0, 1, 2, 9, len(whole.ids) // 2, len(whole.ids) - 1, len(whole.ids)):
        done = whole.ids[:cut]
        before = Transcript(
            engine._decode, max_tokens=request.sampling.max_tokens, stop=request.sampling.stop, eos=frozenset({2})
        )
        for token in done:
            before.feed(token)
        rest = await answer(engine, request, done)
        assert before.take() + rest.text == whole.text
        assert done + rest.ids == whole.ids
        assert (rest.finish_reason, rest.completion_tokens) == (whole.finish_reason, whole.completion_tokens)


async def test_an_answer_that_was_already_complete_computes_nothing(engine: TransformersEngine) -> None:
    whole = await answer(engine, chat("Hello!"))
    steps = engine.steps()
    again = await answer(engine, chat("Hello!"), whole.ids)
    assert (again.text, again.ids, again.finish_reason) == ("", [], FinishReason.STOP)
    assert engine.steps() == steps


async def test_closing_the_iterator_frees_the_blocks(engine: TransformersEngine) -> None:
    request = chat("go", max_tokens=1500, temperature=50.0, seed=1)
    stream = engine.generate(request, ())
    await anext(stream)
    assert engine.free_tokens() < engine._limit_tokens
    await stream.aclose()
    await until_all_free(engine)
    assert not engine._manager.batch_processor.scheduler.has_pending_requests()
    assert not engine._manager.output_router.result_handlers
    assert engine._manager.output_router.output_queue.empty()


async def test_what_does_not_fit_the_context_is_refused_with_the_numbers(engine: TransformersEngine) -> None:
    ids = InferenceRequest(
        id="r",
        model="demo",
        kind=InputKind.COMPLETION,
        sampling=Sampling(max_tokens=49, temperature=0),
        prompt_token_ids=(70,) * 2000,
    )
    with pytest.raises(EngineError) as refused:
        await answer(engine, ids)
    assert refused.value.code == "context_length_exceeded"
    assert not refused.value.retryable
    assert all(number in str(refused.value) for number in ("2000", "49", "2048"))


async def test_a_prompt_as_long_as_the_context_allows_is_answered(engine: TransformersEngine) -> None:
    request = InferenceRequest(
        id="r",
        model="demo",
        kind=InputKind.COMPLETION,
        sampling=Sampling(max_tokens=8, temperature=0),
        prompt_token_ids=(70,) * 2040,
    )
    got = await answer(engine, request)
    assert got.prompt_tokens == 2040
    assert 1 <= got.completion_tokens <= 8
    assert engine.cost(request).tokens == 2048


async def test_a_plain_prompt_is_continued(engine: TransformersEngine) -> None:
    request = InferenceRequest(
        id="r", model="demo", kind=InputKind.COMPLETION, sampling=Sampling(max_tokens=30, temperature=0), prompt="A river gathers"
    )
    got = await answer(engine, request)
    assert "rain" in got.text


async def test_ignore_eos_goes_on_to_max_tokens(engine: TransformersEngine) -> None:
    request = chat("Hello!", max_tokens=90)
    ended = await answer(engine, request)
    went_on = await answer(engine, replace(request, body={"ignore_eos": True}))
    assert (ended.finish_reason, went_on.finish_reason) == (FinishReason.STOP, FinishReason.LENGTH)
    assert went_on.completion_tokens == 90 > ended.completion_tokens
    assert went_on.ids[: len(ended.ids)] == ended.ids


async def test_messages_that_the_template_refuses_are_the_clients_fault(engine: TransformersEngine) -> None:
    with pytest.raises(EngineError, match="Roles are system, user and assistant") as refused:
        await answer(engine, replace(chat("Hello!"), messages=({"role": "oracle", "content": "x"},)))
    assert (refused.value.code, refused.value.retryable) == ("invalid_request", False)


async def test_opaque_input_is_unsupported(engine: TransformersEngine) -> None:
    with pytest.raises(EngineError) as refused:
        await answer(
            engine, InferenceRequest(id="r", model="demo", kind=InputKind.OPAQUE, sampling=Sampling(max_tokens=1), input={})
        )
    assert refused.value.code == "unsupported"


async def test_a_probe_makes_a_step(engine: TransformersEngine) -> None:
    before = engine.steps()
    await engine.probe()
    assert engine.steps() > before


async def test_a_small_budget_is_kept_and_what_never_fits_is_refused() -> None:
    engine = TransformersEngine(WorkerSettings(device="cpu", kv_tokens=256, slots=4))
    info = await engine.start()
    try:
        assert (info.limit_tokens, info.slots, engine.free_tokens()) == (256, 4, 256)
        ids = engine._running().tokenizer.encode(
            "<|begin|><|user|>Tell me about ice.<|end|><|assistant|>", add_special_tokens=False
        )
        request = InferenceRequest(
            id="r",
            model="demo",
            kind=InputKind.CHAT,
            sampling=Sampling(max_tokens=64 - len(ids), temperature=0),
            prompt_token_ids=tuple(ids),
        )
        assert engine.cost(request).tokens == 64 == 4 * PAGE_TOKENS
        full = await asyncio.gather(*(answer(engine, request) for _ in range(4)))  # exactly the whole budget
        assert len({a.text for a in full}) == 1
        with pytest.raises(EngineError) as refused:
            await answer(engine, chat("Hello", max_tokens=300))
        assert refused.value.code == "unschedulable"
    finally:
        await engine.close()


async def test_any_folder_of_save_pretrained_is_served_under_its_name(tmp_path: Path) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path / "my-model")
    engine = TransformersEngine(WorkerSettings(model=str(tmp_path / "my-model"), device="cpu", kv_tokens=512, slots=2))
    try:
        info = await engine.start()
        assert info.card.name == "my-model"
        assert (await answer(engine, chat("Hello!"))).text.startswith("Hello!")
    finally:
        await engine.close()


async def test_a_folder_whose_name_clients_could_not_use_is_refused_at_start(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    shutil.copytree(DEMO_FOLDER, folder)
    with pytest.raises(PenstockError, match="my model") as refused:
        await TransformersEngine(WorkerSettings(model=str(folder), device="cpu")).start()
    assert (refused.value.code, refused.value.param) == ("bad_setting", "worker.served_name")
    assert "--name" in refused.value.hint
    assert locate(WorkerSettings(model=str(folder), served_name="ours")) == (str(folder), "ours")


async def test_an_engine_names_the_device_it_runs_on_as_cuda_numbers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from worker.engines import transformers, transformers_batching

    monkeypatch.setattr(transformers, "pick_device", lambda _: torch.device("cuda", 1))
    monkeypatch.setattr(transformers, "load", lambda *_: None)
    monkeypatch.setattr(transformers_batching, "make_manager", lambda *_: None)
    assert TransformersEngine(WorkerSettings())._load()[1] == "cuda:1"


async def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(PenstockError, match="safetensors") as refused:
        await TransformersEngine(WorkerSettings(model=str(tmp_path / "pickled"), device="cpu")).start()
    assert refused.value.param == "worker.model"


async def test_a_fault_in_the_generation_loop_is_the_death_of_the_engine() -> None:
    engine = TransformersEngine(WorkerSettings(device="cpu", kv_tokens=512, slots=2))
    await engine.start()
    try:
        model = engine._running().model
        stream = engine.generate(chat("go", max_tokens=300, temperature=50.0, seed=1), ())
        await anext(stream)

        def broken(*_: object, **__: object) -> object:
            raise RuntimeError("device-side assert")

        model.forward = broken
        with pytest.raises(EngineDead, match="generation loop has ended"):
            async for _ in stream:
                pass
        with pytest.raises(EngineDead):
            await answer(engine, chat("Hello"))
        with pytest.raises(EngineDead):
            await engine.probe()
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"model": "/no/such/folder"}, "worker.model"),
        ({"model": "./nor/this one"}, "worker.model"),
        ({"model": str(Path(__file__).parent)}, "worker.model"),
        ({"device": "cuda:99"}, "worker.device"),
        ({"device": "toaster"}, "worker.device"),
    ],
)
async def test_a_bad_model_or_device_is_said_in_three_parts(settings: dict, param: str) -> None:
    engine = TransformersEngine(WorkerSettings(**settings))
    with pytest.raises(PenstockError) as refused:
        await engine.start()
    assert (refused.value.code, refused.value.param) == ("bad_setting", param)
    assert refused.value.message
    assert refused.value.hint
