"""Choosing a strategy and naming a session: by settings, by header, by body; and what the parked pulls then get."""

from collections import Counter
from typing import Any

import pytest
from redis.asyncio import Redis

from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.records import RequestRecord
from dispatch.scores import BOUND, Strategy
from gateway.sessions import hashed
from tests.gateway.helpers import MODEL, FakeWorker, Running, serving, settings_for, working
from tests.gateway.stand_ins import StandIns

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
SECRET = "the-clients-own-word"


async def submitted(gateway: Running, headers: dict[str, str] | None = None, **more: object) -> RequestRecord:
    answer = await gateway.client.post("/v1/requests", json={**CHAT, **more}, headers=headers)
    assert answer.status_code == 202, answer.text
    record = await gateway.gateway.queue.record(answer.json()["id"])
    assert record is not None
    return record


@pytest.fixture
async def card(queue: Queue, fleet: Fleet) -> None:
    await FakeWorker(queue, fleet).publish()


async def test_a_request_says_its_strategy_and_its_prompt(gateway: Running, card: None) -> None:
    plain = await submitted(gateway)
    assert (plain.strategy, plain.session, plain.prompt_tokens) == ("pull", "", 3)
    assert (await submitted(gateway, {"X-Penstock-Strategy": "Round_Robin"})).strategy == "round_robin"
    assert (await submitted(gateway, {"X-Penstock-Strategy": "pull"}, strategy="least_loaded")).strategy == "least_loaded"


async def test_a_model_has_its_own_strategy(redis: Redis, server_url: str, queue: Queue, fleet: Fleet) -> None:
    settings = settings_for(server_url, queue={"strategy": "least_connections", "strategies": {"other": "session"}})
    async with serving(settings) as gateway:
        for model, strategy in ((MODEL, "least_connections"), ("other", "session")):
            await FakeWorker(queue, fleet, model=model).publish()
            assert (await submitted(gateway, model=model)).strategy == strategy
        assert (await submitted(gateway, {"X-Penstock-Strategy": "pull"}, model="other")).strategy == "pull"


@pytest.mark.parametrize("route", ["/v1/requests", "/v1/chat/completions"])
async def test_an_unknown_strategy_is_refused_with_the_choices(gateway: Running, worker: FakeWorker, route: str) -> None:
    answer = await gateway.client.post(route, json=CHAT, headers={"X-Penstock-Strategy": "astrology"})
    body = answer.json()
    assert answer.status_code == 400 and body["error"]["param"] == "x-penstock-strategy" and "astrology" in body["detail"]
    assert all(strategy in body["hint"] for strategy in Strategy)
    long = await gateway.client.post(route, json=CHAT, headers={"X-Penstock-Session": "x" * 256})
    assert long.status_code == 400 and long.json()["error"]["param"] == "x-penstock-session"
    assert worker.seen == []


async def test_bad_fields_are_named(gateway: Running, worker: FakeWorker) -> None:
    for change, param in (({"strategy": "astrology"}, "strategy"), ({"session": ""}, "session"), ({"session": 3}, "session")):
        answer = await gateway.client.post("/v1/requests", json={**CHAT, **change})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, change
        assert param == "session" or all(strategy in answer.json()["hint"] for strategy in Strategy)
    answer = await gateway.client.post("/v1/chat/completions", json={**CHAT, "prompt_cache_key": 3})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "prompt_cache_key"


async def test_a_session_is_named_by_header_body_or_address(
    redis: Redis, server_url: str, queue: Queue, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    ours = hashed("session", SECRET, "")
    async with (
        serving(settings_for(server_url, queue={"strategies": {MODEL: "session"}})) as gateway,
        working(FakeWorker(queue, fleet)),
    ):

        async def of(route: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> str:
            answer = await gateway.client.post(route, json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            record = await queue.record(answer.headers["x-penstock-request"])
            assert record is not None and record.strategy == "session"
            return record.session

        chat, plain = "/v1/chat/completions", "/v1/completions"
        text = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
        assert await of(chat, CHAT, {"X-Penstock-Session": SECRET}) == ours
        assert await of(chat, {**CHAT, "prompt_cache_key": SECRET}) == ours
        assert await of(chat, {**CHAT, "user": SECRET}) == ours
        assert await of(chat, {**CHAT, "user": "somebody", "prompt_cache_key": SECRET}) == ours
        assert await of(chat, {**CHAT, "prompt_cache_key": "another"}, {"X-Penstock-Session": SECRET}) == ours
        assert await of(plain, {**text, "prompt_cache_key": SECRET}) == ours
        by_address = hashed("address", "127.0.0.1", "")
        assert await of(chat, CHAT) == await of(chat, {**CHAT, "user": 7}) == by_address
        assert (await submitted(gateway, session=SECRET)).session == ours
        assert (await submitted(gateway, {"X-Penstock-Session": SECRET})).session == ours
        assert (await submitted(gateway, {"X-Penstock-Strategy": "pull"})).session == ""  # nobody asked to be kept together
        assert len(ours) == 32 and ours != hashed("address", SECRET, "")
    assert SECRET not in caplog.text
    assert not await keys_with(redis, SECRET)


async def keys_with(redis: Redis, text: str) -> list[bytes]:
    """The keys whose name or dump holds a text."""
    return [key async for key in redis.scan_iter() if text.encode() in key + (await redis.dump(key) or b"")]


async def test_tenants_do_not_meet_in_a_session(redis: Redis, server_url: str, card: None) -> None:
    keys = ("key-number-1", "key-number-2")
    async with serving(settings_for(server_url, keys=keys)) as gateway:
        names = {
            (await submitted(gateway, {"Authorization": f"Bearer {key}", "X-Penstock-Session": SECRET})).session for key in keys
        }
    assert len(names) == 2 and "" not in names


async def test_a_session_stays_with_its_worker_and_sessions_spread(
    gateway: Running, queue: Queue, fleet: Fleet, card: None
) -> None:
    workers = StandIns(queue, fleet)
    for n in range(4):
        await workers.park(f"w-{n}")
    homes = []
    for n in range(12):
        found = set()
        for _ in range(3):
            record = await submitted(gateway, {"X-Penstock-Strategy": "session", "X-Penstock-Session": f"chat {n}"})
            await workers.beat()
            found.add(record.worker)
            await workers.finish(record.id)
        assert len(found) == 1, found
        homes += found
    assert len(set(homes)) > 1


async def test_a_hot_session_spills(gateway: Running, queue: Queue, fleet: Fleet, card: None) -> None:
    workers = StandIns(queue, fleet)
    for n in range(4):
        await workers.park(f"w-{n}")
    given: Counter[str] = Counter()
    for sent in range(1, 17):
        record = await submitted(gateway, {"X-Penstock-Strategy": "session", "X-Penstock-Session": "hot"})
        await workers.beat()
        given[record.worker] += 1
        assert max(given.values()) <= -(-BOUND * sent // 4), given
    assert len(given) > 1 and sum(given.values()) == 16


async def test_a_session_outlives_its_worker(gateway: Running, queue: Queue, fleet: Fleet, card: None) -> None:
    workers = StandIns(queue, fleet)
    for n in range(3):
        await workers.park(f"w-{n}")
    named = {"X-Penstock-Strategy": "session", "X-Penstock-Session": "chat"}
    first = await submitted(gateway, named)
    await workers.beat()
    del workers.offers[first.worker]
    assert await queue.abandon(first.worker, "it died") == 1
    await workers.beat()
    moved = await queue.record(first.id)
    assert moved is not None and moved.worker != first.worker and moved.strategy == "session"
    await workers.finish(first.id)
    second = await submitted(gateway, named)
    assert second.worker and second.worker != first.worker


async def test_a_retry_asks_for_the_same(gateway: Running, queue: Queue, fleet: Fleet) -> None:
    async with working(FakeWorker(queue, fleet, error={"code": "engine_error", "message": "no luck"})):
        first = await submitted(gateway, {"X-Penstock-Strategy": "session", "X-Penstock-Session": SECRET})
        assert (await gateway.client.get(f"/v1/requests/{first.id}?wait=10")).json()["status"] == "failed"
        answer = await gateway.client.post(f"/v1/requests/{first.id}/retry")
    again = await queue.record(answer.json()["id"])
    assert again is not None and first.session
    assert (again.strategy, again.session, again.prompt_tokens) == (first.strategy, first.session, first.prompt_tokens)
