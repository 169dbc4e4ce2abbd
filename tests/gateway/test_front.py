"""What stands before the framework: who goes through it, what the broken off are told, and the last lines of the log."""

import asyncio
import os
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from gateway.app import answer_to
from gateway.front import Front
from tests.gateway.helpers import MODEL, FakeWorker, serving, settings_for, until

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
HOT = ("/v1/requests", "/v1/chat/completions", "/v1/completions")


@pytest.mark.parametrize("traced", [True, False])
async def test_where_exchanges_are_told_of_the_framework_sees_each(
    redis: object, server_url: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, traced: bool
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    if traced:
        monkeypatch.setenv("OTEL_SERVICE_NAME", "penstock")
    async with serving(settings_for(server_url)) as gateway:
        front: Any = gateway.server.config.app
        inner, seen = front._app, list[str]()

        async def framework(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["path"])
            await inner(scope, receive, send)

        framework.state = inner.state  # type: ignore[attr-defined]
        front._app = framework
        for route, body in zip(HOT, (CHAT, CHAT, {"model": MODEL, "prompt": "hello"}), strict=True):
            answer = await gateway.client.post(route, json=body, headers={"X-Request-Id": "abc-1"})
            assert answer.status_code in (200, 202) and answer.headers["x-request-id"] == "abc-1"
        front._app = inner
    assert seen == (list(HOT) if traced else [])


async def test_who_is_broken_off_is_told_and_logged_as_such(
    redis: object, server_url: str, worker: FakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="penstock.gateway")
    stuck = list[str]()

    async def never(*_: object, **__: object) -> None:
        stuck.append("one")
        await asyncio.Event().wait()

    async with serving(settings_for(server_url)) as gateway:
        gateway.server.config.timeout_graceful_shutdown = 0
        known = (await gateway.client.post("/v1/requests", json=CHAT)).json()["id"]
        caplog.clear()
        queue: Any = gateway.gateway.queue
        queue.enqueue = queue.record = never
        asked = [
            asyncio.create_task(gateway.client.post("/v1/requests", json=CHAT)),
            asyncio.create_task(gateway.client.get(f"/v1/requests/{known}")),
        ]
        await until(lambda: len(stuck) == 2)
        gateway.server.should_exit = True
        for answer in await asyncio.gather(*asked):
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "draining"
            assert answer.headers["x-request-id"] and answer.headers["retry-after"]
    told = {record.route: record.status for record in caplog.records if record.getMessage() == "Answered"}  # type: ignore[attr-defined]
    assert told == {"/v1/requests": 503, "/v1/requests/{request_id}": 503}


async def test_the_last_lines_are_written_also_when_the_application_fails() -> None:
    class Failing(FastAPI):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise RuntimeError("it fails")

    front = Front(Failing(), answer_to)
    flushed = list[str]()
    front._lines.flush = lambda: flushed.append("all")  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="it fails"):
        await front({"type": "lifespan"}, cast(Receive, None), cast(Send, None))
    assert flushed == ["all"]
