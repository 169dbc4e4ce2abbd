"""The upstream engine against a real foreign server: `transformers serve` with continuous batching, on the demo model."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path

import pytest

import worker.models
from dispatch.errors import PenstockError
from dispatch.messages import FinishReason, InferenceRequest, InputKind, Sampling
from dispatch.settings import WorkerSettings
from worker.engines.base import Chunk
from worker.engines.upstream import UpstreamEngine

DEMO = Path(worker.models.__file__).parent / "demo"
SERVE = Path(sys.executable).with_name("transformers")
_NEEDED = ("torch", "transformers", "accelerate", "typer")

pytestmark = [
    pytest.mark.skipif(not SERVE.exists() or not all(map(find_spec, _NEEDED)), reason="`transformers serve` is not installed"),
    pytest.mark.timeout(180),
]


@pytest.fixture(scope="module")
def foreign_url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(SERVE), "serve", str(DEMO), "--continuous-batching", "--device", "cpu", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--cb-num-blocks", "64", "--cb-block-size", "32", "--cb-max-batch-tokens", "256"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def engine_at(url: str, model: str = str(DEMO)) -> UpstreamEngine:
    settings = WorkerSettings(engine="upstream", upstream_url=url, model=model, served_name="demo")
    return UpstreamEngine(settings, wait_s=90)


def chat(words: str, max_tokens: int = 12) -> InferenceRequest:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
    said = ({"role": "user", "content": words},)
    return InferenceRequest("s0.1", "demo", InputKind.CHAT, sampling, messages=said, body={"max_tokens": max_tokens})


async def heard(engine: UpstreamEngine, request: InferenceRequest) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request, ())]


async def test_a_real_foreign_server(foreign_url: str) -> None:
    engine = engine_at(foreign_url)
    info = await engine.start()  # it lists nothing here: a real request decided
    assert info.card.name == "demo"

    alone = await heard(engine, chat("Hello"))
    text = "".join(c.text for c in alone)
    assert text.strip() and len(alone) > 3
    assert alone[-1].finish_reason in (FinishReason.LENGTH, FinishReason.STOP)
    assert 0 < alone[-1].completion_tokens <= 12 and alone[-1].prompt_tokens > 0

    together = await asyncio.gather(*(heard(engine, chat("Hello")) for _ in range(8)))
    assert {"".join(c.text for c in chunks) for chunks in together} == {text}

    completion = InferenceRequest(
        "s0.2", "demo", InputKind.COMPLETION, Sampling(6, temperature=0.0), prompt="The water", body={"max_tokens": 6}
    )
    assert (await heard(engine, completion))[-1].completion_tokens <= 6

    async with aclosing(engine.generate(chat("Tell me a story", 400), ())) as answer:  # type: ignore[type-var]
        await anext(answer)
    assert "".join(c.text for c in await heard(engine, chat("Hello"))) == text  # hung up on, it still serves
    await engine.close()


async def test_a_model_it_does_not_serve(foreign_url: str) -> None:
    engine = engine_at(foreign_url, "nope")
    with pytest.raises(PenstockError, match="pinned to"):
        await engine.start()
    await engine.close()
