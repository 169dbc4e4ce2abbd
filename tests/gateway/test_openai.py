"""The official openai client, unmodified, against the OpenAI API: streamed, whole, usage, errors."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from dispatch.queue import Queue
from tests.gateway.helpers import MODEL, FakeWorker, Running, Tap, serving, settings_for, until

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0, timeout=20) as made:
        yield made


@pytest.fixture
def sync_client(gateway: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0, timeout=20) as made:
        yield made


async def test_a_whole_chat(client: openai.AsyncOpenAI, worker: FakeWorker) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content == "w0 w1 w2 "
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 3
    assert worker.seen[0].sampling.temperature == 0 and worker.seen[0].sampling.max_tokens == 8


async def test_a_streamed_chat(client: openai.AsyncOpenAI, worker: FakeWorker) -> None:
    texts, reasons, roles = [], [], []
    async for chunk in await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
        assert chunk.usage is None
        roles.append(chunk.choices[0].delta.role)
        texts.append(chunk.choices[0].delta.content or "")
        reasons.append(chunk.choices[0].finish_reason)
    assert "".join(texts) == "w0 w1 w2 "
    assert roles[0] == "assistant" and set(roles[1:]) == {None}
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}


async def test_pings_between_chunks_are_no_chunks(redis: object, server_url: str, worker: FakeWorker) -> None:
    """The client keeps an event's id for the next: an empty line after a comment would then be an empty chunk to it."""
    tap = Tap(worker)
    async with (
        serving(settings_for(server_url, ping_s=0.05)) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0, timeout=20) as client,
    ):
        texts = []
        await tap.to(1)
        async for chunk in await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
            texts.append(chunk.choices[0].delta.content or "")
            if "".join(texts) == "w0 ":
                asyncio.get_running_loop().call_later(0.5, lambda: asyncio.ensure_future(tap.to(3)))
        assert "".join(texts) == "w0 w1 w2 "


async def test_usage_comes_last_when_asked_for(client: openai.AsyncOpenAI, worker: FakeWorker) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_completions_streamed_and_whole(client: openai.AsyncOpenAI, worker: FakeWorker) -> None:
    whole = await client.completions.create(model=MODEL, prompt="once", max_tokens=8)
    assert whole.choices[0].text == "w0 w1 w2 " and whole.choices[0].finish_reason == "stop"
    stream = await client.completions.create(model=MODEL, prompt=["once"], max_tokens=8, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "w0 w1 w2 "
    ids = await client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=8)
    assert ids.choices[0].text == "w0 w1 w2 " and worker.seen[-1].prompt_token_ids == (1, 2, 3)


async def test_the_sync_client(sync_client: openai.OpenAI, worker: FakeWorker) -> None:
    def talk() -> tuple[str | None, str, list[str]]:
        whole = sync_client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content
        stream = sync_client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        return whole, text, [model.id for model in sync_client.models.list()]

    assert await asyncio.to_thread(talk) == ("w0 w1 w2 ", "w0 w1 w2 ", [MODEL])


async def test_models_say_their_state(client: openai.AsyncOpenAI, worker: FakeWorker) -> None:
    models = [model async for model in client.models.list()]
    assert [m.id for m in models] == [MODEL]
    await until(worker.fleet.workers)
    found = await client.models.retrieve(MODEL)
    assert found.model_extra is not None and found.model_extra["penstock"]["state"] == "ready"
    assert found.model_extra["penstock"]["workers"] == 1


async def test_hostile_text_arrives_as_it_was(client: openai.AsyncOpenAI, worker: FakeWorker) -> None:
    nasty = ["\n\ndata: [DONE]\n\n", "\r", "\r\n", "\u2028\u2029", "\x00\x1b[31m", 'event: end\nid: 9\n"\\', "\U0001f600é"]
    worker.plan = lambda request: nasty
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "".join(nasty)


async def test_typed_errors_before_the_stream(client: openai.AsyncOpenAI, worker: FakeWorker) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="nobody", messages=HELLO, stream=stream)
        assert unknown.value.code == "model_not_found" and unknown.value.param == "model" and MODEL in str(unknown.value)
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model=MODEL, messages=HELLO, temperature=3, stream=stream)
        assert bad.value.param == "temperature" and bad.value.type == "invalid_request_error"
        with pytest.raises(openai.BadRequestError) as long:
            await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5000, stream=stream)
        assert long.value.code == "context_length_exceeded" and "4096" in str(long.value)
        for field, value in (("n", 2), ("logprobs", True), ("presence_penalty", 0.5), ("tools", [{"type": "function"}])):
            with pytest.raises(openai.BadRequestError) as unsupported:
                await client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream, extra_body={field: value})
            assert unsupported.value.code == "unsupported" and unsupported.value.param == field


async def test_a_failed_request_is_an_error_frame_or_a_status(client: openai.AsyncOpenAI, worker: FakeWorker) -> None:
    worker.error = {"code": "engine_error", "message": "the engine slipped"}
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    texts = []
    with pytest.raises(openai.APIError) as within:
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content or "")
    assert within.value.code == "engine_error" and "slipped" in str(within.value) and "".join(texts) == "w0 w1 w2 "
    with pytest.raises(openai.InternalServerError) as whole:
        await client.with_options(max_retries=2).chat.completions.create(model=MODEL, messages=HELLO)
    assert whole.value.code == "engine_error"
    assert len(worker.seen) == 2  # it was queued: the client was told not to send it again


async def test_cancelled_and_expired_have_their_own_status(
    gateway: Running, client: openai.AsyncOpenAI, worker: FakeWorker, queue: Queue
) -> None:
    async def gate(_: object, __: int) -> None:
        await asyncio.Event().wait()

    worker.gate = gate
    task = asyncio.create_task(client.with_options(max_retries=2).chat.completions.create(model=MODEL, messages=HELLO))
    await until(lambda: worker.seen)
    await queue.cancel(worker.seen[0].id)
    with pytest.raises(openai.ConflictError):
        await task
    with pytest.raises(openai.InternalServerError) as expired:
        await client.chat.completions.create(model=MODEL, messages=HELLO, extra_headers={"X-Request-Timeout": "0.3"})
    assert expired.value.status_code == 504 and expired.value.code == "deadline_exceeded"


async def test_a_full_backlog_is_429_with_retry_after(redis: object, server_url: str, worker: FakeWorker) -> None:
    async with serving(settings_for(server_url, queue={"max_backlog": 1})) as gateway:
        await gateway.client.post(f"/v1/queues/{MODEL}/pause")
        async with (
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client,
            client.chat.completions.with_streaming_response.create(
                model=MODEL, messages=HELLO, stream=True, extra_headers={"X-Penstock-On-Disconnect": "continue"}
            ) as first,
        ):
            assert first.headers["x-penstock-queue-position"] == "1"
            with pytest.raises(openai.RateLimitError) as full:
                await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert full.value.code == "queue_full" and 1 <= int(full.value.response.headers["retry-after"]) <= 120
        assert full.value.response.headers["content-type"] == "application/problem+json"
        assert full.value.response.json()["backlog"] == 1 and full.value.response.json()["max_backlog"] == 1
        assert 'penstock_requests_rejected_total{reason="queue_full"} 1.0' in (await gateway.client.get("/metrics")).text


async def test_a_stream_starts_with_its_place_in_the_queue_and_resumes_natively(gateway: Running, worker: FakeWorker) -> None:
    await gateway.client.post(f"/v1/queues/{MODEL}/pause")
    body = {"model": MODEL, "messages": HELLO, "stream": True}
    async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.aiter_lines()
        assert await anext(lines) == ": queued position=1"
        request = response.headers["x-penstock-request"]
        await gateway.client.post(f"/v1/queues/{MODEL}/resume")
        frames = [line async for line in lines if line]
    assert frames[-1] == "data: [DONE]"
    ids = [line.removeprefix("id: ") for line in frames if line.startswith("id: ")]
    assert [i.split("-")[0] for i in ids] == ["1", "2", "3"]
    rest = (await gateway.client.get(f"/v1/requests/{request}/events?after={ids[1]}")).text
    assert [json.loads(line[6:])["text"] for line in rest.split("\n") if line.startswith('data: {"text')] == ["w2 "]


async def test_an_idempotency_key_gives_the_same_answer_once_more(
    gateway: Running, client: openai.AsyncOpenAI, worker: FakeWorker
) -> None:
    headers = {"Idempotency-Key": "same"}
    body = {"model": MODEL, "messages": HELLO, "stream": True}
    first = await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
    again = await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-penstock-request"] == first.headers["x-penstock-request"]
    assert again.text.count("data: ") == first.text.count("data: ") > 4 and again.text.endswith("data: [DONE]\n\n")
    with pytest.raises(openai.UnprocessableEntityError) as other:
        await client.chat.completions.create(model=MODEL, messages=HELLO, extra_headers=headers)
    assert other.value.code == "idempotency_mismatch" and len(worker.seen) == 1


async def test_64_chats_at_once_do_not_mix(gateway: Running, client: openai.AsyncOpenAI, worker: FakeWorker) -> None:
    worker.plan = lambda request: [f"{request.messages[0]['content']}:{n} " for n in range(20)]

    async def talk(n: int) -> str:
        stream = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": f"c{n}"}], stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    answers = await asyncio.gather(*(talk(n) for n in range(64)))
    assert answers == ["".join(f"c{n}:{k} " for k in range(20)) for n in range(64)]
    await until(lambda: not gateway.gateway.feed._requests)  # nothing is kept of a stream that is over
