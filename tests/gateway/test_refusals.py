"""What is refused before any work, and that each refusal names the field, the numbers and what to do."""

import contextlib
from typing import Any

import httpx2
import pytest

from dispatch.errors import ERROR_KINDS
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.reports import TokenizerFiles
from gateway.bodies import MAX_DEPTH, depth_of
from tests.gateway.helpers import MODEL, FakeWorker, Running, serving, settings_for, working

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model"),
    ({"model": 3}, "model"),
    ({"model": "x" * 200}, "model"),
    ({"model": "a{b}"}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "user", "content": "x"}] * 1025}, "messages"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]},
        "messages[0].content[0]",
    ),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"stop": ["x"] * 9}, "stop"),
    ({"stop": "x" * 65}, "stop"),
    ({"n": 1_000_000_000}, "n"),
    ({"seed": "x"}, "seed"),
    ({"logit_bias": {"1": 5}}, "logit_bias"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"frequency_penalty": 1}, "frequency_penalty"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
]


@pytest.mark.parametrize("route", ["/v1/requests", "/v1/chat/completions"])
async def test_a_bad_field_is_named(gateway: Running, worker: FakeWorker, route: str) -> None:
    for change, param in BAD_FIELDS:
        if route == "/v1/requests" and next(iter(change)) in (
            "logit_bias",
            "response_format",
            "frequency_penalty",
            "chat_template",
        ):
            continue  # unknown there, see below
        answer = await gateway.client.post(route, json={**CHAT, **change})
        assert answer.status_code == 400, (change, answer.text)
        body = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert body["error"]["param"] == param == body["param"], change
        assert body["status"] == 400 and body["title"] and body["detail"] and body["hint"]
        assert body["error"]["code"] in ERROR_KINDS and body["error"]["type"] == "invalid_request_error"
    assert worker.seen == []


async def test_the_native_api_refuses_unknown_fields_the_openai_api_does_not(gateway: Running, worker: FakeWorker) -> None:
    body = {**CHAT, "surprise": 1}
    refused = await gateway.client.post("/v1/requests", json=body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "surprise"
    assert (await gateway.client.post("/v1/chat/completions", json=body)).status_code == 200
    for missing in ({"model": MODEL}, {**CHAT, "prompt": "x"}, {**CHAT, "input": 1}):
        assert (await gateway.client.post("/v1/requests", json=missing)).status_code == 400
    for change, param in (
        ({"priority": "urgent"}, "priority"),
        ({"deadline_seconds": 1e9}, "deadline_seconds"),
        ({"deadline_seconds": -1}, "deadline_seconds"),
        ({"on_disconnect": "panic"}, "on_disconnect"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"stream": True}, "stream"),
    ):
        answer = await gateway.client.post("/v1/requests", json={**CHAT, **change})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, change
    timeout = await gateway.client.post("/v1/requests", json=CHAT, headers={"X-Request-Timeout": "soon"})
    assert timeout.status_code == 400 and timeout.json()["error"]["param"] == "x-request-timeout"


async def test_bodies_that_are_no_json_objects(gateway: Running) -> None:
    headers = {"Content-Type": "application/json"}
    deep = b'{"model":"demo","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for body in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a":NaN}',
        b'{"a":1e400}',
        b'{"a":Infinity}',
        b'{"a":"\\ud800"}',
        b"\xff\xfe",
        deep,
    ):
        for route in ("/v1/requests", "/v1/chat/completions", "/v1/completions"):
            answer = await gateway.client.post(route, content=body, headers=headers)
            assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_request", body[:20]
    too_deep = await gateway.client.post("/v1/requests", json={"model": MODEL, "input": nested(MAX_DEPTH)})
    assert too_deep.status_code == 400 and "32 levels" in too_deep.json()["detail"]
    assert depth_of({"a": nested(3)}, 100) == 4 and depth_of({}, 100) == 1 and depth_of(nested(500), 33) == 33


async def test_only_plain_json_is_read(gateway: Running) -> None:
    for headers, param in (
        ({"Content-Type": "text/plain"}, "content-type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "content-type"),
        ({}, "content-type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "content-encoding"),
    ):
        answer = await gateway.client.post("/v1/requests", content=b"{}", headers=headers)
        assert answer.status_code == 415 and answer.json()["error"]["param"] == param


async def test_a_body_is_counted_as_it_arrives(redis: object, server_url: str) -> None:
    async with serving(settings_for(server_url, max_body_bytes=4096)) as gateway:
        sent = 0

        async def spaces(total: int) -> Any:
            nonlocal sent
            sent = 0
            while sent < total:
                sent += 65_536
                yield b" " * 65_536

        headers = {"Content-Type": "application/json"}
        chunked = await gateway.client.post("/v1/requests", content=spaces(4_000_000), headers=headers)
        assert chunked.status_code == 413 and chunked.json()["max_bytes"] == 4096
        with contextlib.suppress(httpx2.TransportError):  # cut: whether the answer still arrives is a race
            await gateway.client.post("/v1/requests", content=spaces(200_000_000), headers=headers)
        assert sent < 100_000_000
        known = await gateway.client.post("/v1/requests", json={"model": MODEL, "prompt": "x" * 5000})
        assert known.status_code == 413 and known.json()["error"]["code"] == "payload_too_large"


async def test_what_no_worker_can_hold_is_unschedulable_with_the_numbers(
    redis: object, gateway: Running, queue: Queue, fleet: Fleet
) -> None:
    async with working(FakeWorker(queue, fleet, max_cost=64)):
        answer = await gateway.client.post("/v1/requests", json={**CHAT, "max_tokens": 100})
        assert answer.status_code == 422
        body = answer.json()
        assert body["error"]["code"] == "unschedulable" and body["max_cost_tokens"] == 64 and body["cost_tokens"] == 112
        assert (body["prompt_tokens"], body["max_tokens"]) == (3, 100) and "start a worker with more" in body["hint"]
        for part in ("needs 112 KV tokens", "prompt 3 + max_tokens 100", "holds 64"):
            assert part in body["detail"]
        # Without max_tokens it is made to fit.
        fits = await gateway.client.post("/v1/requests", json=CHAT, headers={"Prefer": "wait=5"})
        assert fits.status_code == 200


async def test_an_upstream_model_gets_the_body_as_it_came(gateway: Running, queue: Queue, fleet: Fleet) -> None:
    async with working(FakeWorker(queue, fleet, model="org/up:1", engine="upstream")) as worker:
        body = {**CHAT, "model": "org/up:1", "tools": [{"type": "function"}], "logprobs": True, "odd": {"x": 1}}
        answer = await gateway.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert worker.seen[0].body["tools"] == body["tools"] and worker.seen[0].body["odd"] == {"x": 1}
        assert "stream" not in worker.seen[0].body
        n = await gateway.client.post("/v1/chat/completions", json={**body, "n": 2})
        assert n.status_code == 400 and n.json()["error"]["param"] == "n"
        models = (await gateway.client.get("/v1/models/org/up:1")).json()
        assert models["id"] == "org/up:1"


def tiny_tokenizer() -> TokenizerFiles:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "<user>", "<assistant>", "hello", "world", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    template = (
        "{{ bos_token }} {% for m in messages %}\n    {% if m.role == 'odd' %}{{ raise_exception('no odd role') }}{% endif %}\n"
        "<{{ m.role }}> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return TokenizerFiles(tokenizer.to_str(), template, {"bos_token": "<s>"})


async def test_the_prompt_is_counted_with_the_cards_tokenizer_and_template(gateway: Running, queue: Queue, fleet: Fleet) -> None:
    async with working(FakeWorker(queue, fleet, files=tiny_tokenizer(), context=16)) as worker:
        chat = {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": "hello world"}]}]}
        assert (await gateway.client.post("/v1/chat/completions", json=chat)).status_code == 200
        assert worker.seen[-1].prompt_token_ids == (0, 1, 3, 4, 2)
        assert worker.seen[-1].sampling.max_tokens == 11  # the rest of the context
        assert worker.seen[-1].cost_tokens == 16
        plain = await gateway.client.post("/v1/completions", json={"model": MODEL, "prompt": "world hello"})
        assert plain.status_code == 200 and worker.seen[-1].prompt_token_ids == (4, 3)
        long = await gateway.client.post("/v1/completions", json={"model": MODEL, "prompt": "hello " * 5000})
        assert long.status_code == 400 and long.json()["prompt_tokens"] == 5000 and long.json()["context_tokens"] == 16
        odd = await gateway.client.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "odd", "content": "x"}]}
        )
        assert odd.status_code == 400 and "no odd role" in odd.json()["detail"]
        foreign = await gateway.client.post("/v1/completions", json={"model": MODEL, "prompt": [1, 99]})
        assert foreign.status_code == 400 and foreign.json()["error"]["param"] == "prompt"


async def test_unknown_pages_and_methods_are_problems_too(gateway: Running) -> None:
    unknown = await gateway.client.get("/v1/nothing")
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "not_found"
    wrong = await gateway.client.put("/v1/requests", json={})
    assert wrong.status_code == 405 and wrong.json()["error"]["code"] == "method_not_allowed" and "allow" in wrong.headers
