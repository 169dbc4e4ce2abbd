"""The upstream engine against scripted servers on real sockets: every shape of answer, refusal and break."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from dispatch.errors import PenstockError
from dispatch.messages import FinishReason, InferenceRequest, InputKind, Sampling
from dispatch.settings import WorkerSettings
from tests.worker.foreign import ForeignServer, Script, event, foreign, open_stream, refuses, respond, says
from worker.engines.base import Chunk, EngineError
from worker.engines.upstream import UpstreamEngine

CHAT = InferenceRequest(
    "s0.1",
    "ours",
    InputKind.CHAT,
    Sampling(max_tokens=20, temperature=0.0, stop=("END",), seed=7),
    messages=({"role": "user", "content": "hi"},),
    body={"presence_penalty": 0.5, "max_completion_tokens": 20},
)
COMPLETION = InferenceRequest("s0.2", "ours", InputKind.COMPLETION, Sampling(max_tokens=5), prompt="once", body={"max_tokens": 5})


def engine_at(url: str, **settings: Any) -> UpstreamEngine:
    base = {"engine": "upstream", "upstream_url": url, "model": "their-model"}
    return UpstreamEngine(WorkerSettings.model_validate({**base, **settings}), wait_s=0.1)


@asynccontextmanager
async def talking(script: Script, **more: Any) -> AsyncIterator[tuple[ForeignServer, UpstreamEngine]]:
    async with foreign(script, **more) as server:
        engine = engine_at(server.url)
        yield server, engine
        await engine.close()


async def heard(engine: UpstreamEngine, request: InferenceRequest = CHAT) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request, ())]


async def test_a_chat_is_passed_on_and_streamed_back() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4}
    async with talking(says("The ", "größer", " 🚀", usage=usage)) as (server, engine):
        chunks = await heard(engine)
    assert [c.text for c in chunks] == ["The ", "größer", " 🚀", ""]
    assert chunks[-1] == Chunk(finish_reason=FinishReason.STOP, prompt_tokens=9, completion_tokens=4)
    ((path, body),) = server.heard
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "their-model",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 20,
        "temperature": 0.0,
        "stop": ["END"],
        "seed": 7,
        "presence_penalty": 0.5,
    }


@pytest.mark.parametrize("body", [{}, {"max_tokens": None}])
async def test_an_answer_that_the_client_did_not_limit_is_not_limited(body: dict[str, Any]) -> None:
    """The number in its sampling is only what it was priced by."""
    request = replace(CHAT, body=body, sampling=Sampling(max_tokens=1024))
    async with talking(says("all of it")) as (server, engine):
        await heard(engine, request)
    assert "max_tokens" not in server.heard[0][1]


async def test_a_completion_without_usage_counts_its_pieces() -> None:
    async with talking(says("a", "b", "c", finish="length", done=False)) as (server, engine):
        chunks = await heard(engine, COMPLETION)
    assert "".join(c.text for c in chunks) == "abc"
    assert chunks[-1] == Chunk(finish_reason=FinishReason.LENGTH, prompt_tokens=1, completion_tokens=3)
    assert server.heard[0][0] == "/v1/completions"
    assert "temperature" not in server.heard[0][1]  # the server's own default counts


async def test_a_server_that_does_not_know_stream_options_is_asked_without() -> None:
    async def script(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if "stream_options" in body:
            return respond(writer, 422, {"detail": [{"loc": ["body", "stream_options"], "msg": "extra fields"}]})
        return await says("ok")(path, body, writer)

    async with talking(script) as (server, engine):
        assert (await heard(engine))[0].text == "ok"
        assert (await heard(engine))[0].text == "ok"
        assert len(server.heard) == 3  # it is remembered


async def test_a_server_that_does_not_stream_still_answers() -> None:
    answer = {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
    async with talking(refuses(200, answer)) as (_, engine):
        chunks = await heard(engine)
    assert [c.text for c in chunks] == ["whole", ""]
    assert chunks[-1].completion_tokens == 2


@pytest.mark.parametrize(
    ("status", "body", "code", "retryable", "words"),
    [
        (400, {"error": {"message": "no such parameter", "type": "x"}}, "upstream_rejected", False, "no such parameter"),
        (
            400,
            {"error": {"message": "too long", "code": "context_length_exceeded"}},
            "context_length_exceeded",
            False,
            "too long",
        ),
        (404, {"detail": "model gone"}, "upstream_rejected", False, "model gone"),
        (401, {"error": "bad key sk-123"}, "upstream_error", False, "refuses our API key"),
        (429, {"error": {"message": "slow down"}}, "upstream_error", True, "429: slow down"),
        (500, "<html>", "upstream_error", True, "500"),
        (503, {"error": "loading"}, "upstream_error", True, "loading"),
    ],
)
async def test_refusals_are_typed(status: int, body: Any, code: str, retryable: bool, words: str) -> None:
    async with talking(refuses(status, body)) as (_, engine):
        with pytest.raises(EngineError, match=words) as failed:
            await heard(engine)
    assert (failed.value.code, failed.value.retryable) == (code, retryable)
    assert "sk-123" not in str(failed.value)


async def test_an_answer_that_breaks_off_may_be_tried_again() -> None:
    async with talking(says("half", finish=None, done=False)) as (_, engine):
        with pytest.raises(EngineError, match="broke off") as failed:
            await heard(engine)
    assert failed.value.retryable


@pytest.mark.parametrize("data", [{"error": {"message": "CUDA out of memory"}}, '{"error": "said "so""}'])
async def test_an_error_in_the_middle_of_a_stream(data: Any) -> None:
    async def script(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        open_stream(writer)
        event(writer, {"choices": [{"delta": {"content": "half"}}]})
        event(writer, data)

    got = []
    async with talking(script) as (_, engine):
        with pytest.raises(EngineError, match=r"CUDA|not JSON") as failed:
            async for chunk in engine.generate(CHAT, ()):
                got.append(chunk.text)
    assert failed.value.retryable and got == ["half"]


async def test_a_connection_closed_before_any_answer_is_opened_anew() -> None:
    async def script(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if len(server.heard) > 1:
            await says("second time")(path, body, writer)

    async with talking(script) as (server, engine):
        assert (await heard(engine))[0].text == "second time"


async def test_a_server_that_always_hangs_up_is_an_error() -> None:
    async def script(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        pass

    async with talking(script) as (_, engine):
        with pytest.raises(EngineError, match="closed or refused") as failed:
            await heard(engine)
    assert failed.value.retryable


async def test_closing_hangs_up_on_the_server() -> None:
    async def script(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        open_stream(writer)
        event(writer, {"choices": [{"delta": {"content": "first"}}]})
        await writer.drain()
        await asyncio.Event().wait()

    async with talking(script) as (server, engine):
        async with aclosing(engine.generate(CHAT, ())) as answer:  # type: ignore[type-var]
            assert (await anext(answer)).text == "first"
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_what_cannot_be_carried_is_refused_before_it_is_asked() -> None:
    async with talking(says("x")) as (server, engine):
        for body in ({"n": 2}, {"tools": [{}]}, {"logprobs": True}):
            request = InferenceRequest("s0.3", "m", InputKind.CHAT, Sampling(1), body=body)
            with pytest.raises(EngineError, match=repr(next(iter(body)))) as failed:
                await heard(engine, request)
            assert failed.value.code == "unsupported"
        opaque = InferenceRequest("s0.4", "m", InputKind.OPAQUE, Sampling(1), input={})
        with pytest.raises(EngineError, match="opaque"):
            await heard(engine, opaque)
        with pytest.raises(EngineError, match="cannot be continued"):
            await anext(engine.generate(CHAT, (1, 2)))
        assert server.heard == []


async def test_start_reads_the_context_from_the_list() -> None:
    async with foreign(says("x")) as server:
        engine = engine_at(server.url + "/", served_name="ours", slots=3, kv_tokens=5000, upstream_api_key="secret")
        info = await engine.start()
        await engine.close()
    assert (info.card.name, info.card.context_tokens, info.slots, info.limit_tokens) == ("ours", 4096, 3, 5000)
    assert server.headers[0]["authorization"] == "bearer secret"
    assert server.heard == []


def test_an_upstream_model_needs_a_name_that_clients_can_use() -> None:
    with pytest.raises(PenstockError) as refused:
        engine_at("http://127.0.0.1:1/v1", model="my model")
    assert (refused.value.code, refused.value.param) == ("bad_setting", "worker.served_name")


async def test_a_model_that_is_not_listed_may_still_answer() -> None:
    async with talking(says("x"), models=[], models_status=500) as (server, engine):
        info = await engine.start()
    assert info.card.name == "their-model"
    assert server.heard[0][1]["max_tokens"] == 1


async def test_a_missing_model_names_what_is_served() -> None:
    script = refuses(404, {"error": {"message": "The model does not exist"}})
    async with talking(script, models=[{"id": "llama"}, {"id": "qwen"}]) as (_, engine):
        with pytest.raises(PenstockError, match="does not exist") as failed:
            await engine.start()
    assert failed.value.hint == "It serves: llama, qwen."


async def test_start_says_what_is_wrong() -> None:
    with pytest.raises(PenstockError, match="does not answer"):
        await engine_at("http://127.0.0.1:9/v1").start()
    with pytest.raises(PenstockError, match="no server to ask"):
        UpstreamEngine(WorkerSettings(engine="upstream"))
    with pytest.raises(PenstockError, match="not an http"):
        engine_at("localhost:8000")
    async with talking(says("x"), models_status=401) as (_, engine):
        with pytest.raises(PenstockError, match="refuses our API key"):
            await engine.start()
