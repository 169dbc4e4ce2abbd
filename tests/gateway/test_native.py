"""The native API: submit, look, stream, result, cancel, retry, list."""

import asyncio
import json

import httpx2
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from dispatch.queue import Queue
from tests.gateway.helpers import MODEL, FakeWorker, Running, events_of, until

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


async def submitted(gateway: Running, **more: object) -> str:
    answer = await gateway.client.post("/v1/requests", json={**CHAT, **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def ended(gateway: Running, request: str) -> dict[str, object]:
    answer = await gateway.client.get(f"/v1/requests/{request}?wait=10")
    assert answer.status_code == 200
    return dict(answer.json())


async def test_a_submit_is_accepted_and_its_result_read(gateway: Running, worker: FakeWorker) -> None:
    answer = await gateway.client.post("/v1/requests", json=CHAT)
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["location"] == f"/v1/requests/{body['id']}" == body["links"]["self"]
    assert answer.headers["retry-after"] == "1"
    assert body["status"] in ("queued", "running") and body["model"] == MODEL
    assert (await ended(gateway, body["id"]))["status"] == "completed"
    result = (await gateway.client.get(body["links"]["result"])).json()
    assert result["text"] == "w0 w1 w2 "
    assert result["finish_reason"] == "stop"
    assert result["usage"]["completion_tokens"] == 3 and result["usage"]["total_tokens"] == result["usage"]["prompt_tokens"] + 3
    assert result["timing"]["total_ms"] >= 0 and result["error"] is None


async def test_prefer_wait_answers_with_the_result(gateway: Running, worker: FakeWorker) -> None:
    answer = await gateway.client.post("/v1/requests", json=CHAT, headers={"Prefer": "wait=10"})
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=10"
    assert answer.json()["text"] == "w0 w1 w2 "


async def test_a_wait_whose_result_cannot_be_read_any_more_answers_202_and_where_to_look(
    gateway: Running, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    async def away(*_: object, **__: object) -> None:
        nonlocal looks
        looks += 1
        raise RedisConnectionError("Connection refused")

    headers = {"Prefer": "wait=10", "Idempotency-Key": "twice"}
    monkeypatch.setattr(gateway.gateway.queue, "ending", away)
    first = await gateway.client.post("/v1/requests", json=CHAT, headers=headers)
    assert first.status_code == 200 and not looks, "its end says all that is told of it"
    answer = await gateway.client.post("/v1/requests", json=CHAT, headers=headers)
    monkeypatch.undo()
    assert looks and answer.status_code == 202, answer.text
    kept = await gateway.client.get(f"/v1/requests/{first.json()['id']}/result")
    assert kept.json() == first.json(), "what its end says is what its record says"
    request = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/requests/{request}"
    assert (await ended(gateway, request))["status"] == "completed"


async def test_a_wait_that_is_over_first_answers_202_and_the_request_goes_on(
    gateway: Running, worker: FakeWorker, queue: Queue
) -> None:
    go = asyncio.Event()

    async def gate(_: object, __: int) -> None:
        await go.wait()

    worker.gate = gate
    answer = await gateway.client.post("/v1/requests", json=CHAT, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    request = answer.json()["id"]

    async def kept() -> bool:
        record = await queue.record(request)
        return record is not None and record.on_disconnect == "continue"

    await until(kept)  # its client has the id now: nobody reading it is no reason to cancel
    go.set()
    assert (await ended(gateway, request))["status"] == "completed"


async def test_events_have_ids_to_resume_by_and_end(gateway: Running, worker: FakeWorker) -> None:
    request = await submitted(gateway)
    async with gateway.client.stream("GET", f"/v1/requests/{request}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no" and response.headers["cache-control"] == "no-cache"
        events = [event async for event in events_of(response)]
    assert [e.name for e in events] == ["status", "chunk", "chunk", "chunk", "end"]
    assert [e.id.split("-")[0] for e in events] == ["0", "1", "2", "3", "4"]
    assert "".join(json.loads(e.data)["text"] for e in events if e.name == "chunk") == "w0 w1 w2 "
    assert json.loads(events[-1].data)["state"] == "completed"
    for cut_at in range(len(events)):
        for headers, query in (({"Last-Event-ID": events[cut_at].id}, ""), ({}, f"?after={events[cut_at].id}")):
            async with gateway.client.stream("GET", f"/v1/requests/{request}/events{query}", headers=headers) as response:
                if cut_at == len(events) - 1:
                    assert response.status_code == 204  # nothing will ever follow: an EventSource stops
                    continue
                rest = [event async for event in events_of(response)]
            assert rest[0].name == "status" and rest[0].id == events[cut_at].id
            assert rest[1:] == events[cut_at + 1 :]


async def test_malformed_and_foreign_event_ids_are_refused(gateway: Running, worker: FakeWorker) -> None:
    request, other = await submitted(gateway), await submitted(gateway)
    await ended(gateway, request)
    foreign = (await gateway.client.get(f"/v1/requests/{other}/events")).text.split("id: ")[1].split("\n")[0]
    assert foreign.startswith("0-")
    for bad in (
        "x",
        "1",
        "-1-0123456789abcdef",
        "1-0123456789ABCDEF",
        "01-0123456789abcdef",
        "9" * 30 + "-0123456789abcdef",
        foreign,
    ):
        answer = await gateway.client.get(f"/v1/requests/{request}/events", headers={"Last-Event-ID": bad})
        assert answer.status_code == 400, bad
        assert answer.json()["error"]["code"] == "invalid_event_id"


async def test_an_id_whose_chain_differs_rewinds(gateway: Running, worker: FakeWorker) -> None:
    request = await submitted(gateway)
    await ended(gateway, request)
    async with gateway.client.stream("GET", f"/v1/requests/{request}/events?after=2-0123456789abcdef") as response:
        events = [event async for event in events_of(response)]
    assert [e.name for e in events] == ["status", "rewind", "chunk", "chunk", "chunk", "end"]


async def test_cancel_is_final_and_idempotent(gateway: Running, worker: FakeWorker) -> None:
    async def gate(_: object, __: int) -> None:
        await asyncio.Event().wait()

    worker.gate = gate
    request = await submitted(gateway)
    await until(lambda: worker.seen)
    for _ in range(2):
        answer = await gateway.client.delete(f"/v1/requests/{request}")
        assert answer.status_code == 200 and answer.json()["status"] == "cancelled"
    await until(lambda: request in worker.stopped)
    result = await gateway.client.get(f"/v1/requests/{request}/result")
    assert result.status_code == 200 and result.json()["error"]["code"] == "cancelled"


async def test_retry_makes_a_new_request_from_the_kept_input(gateway: Running, worker: FakeWorker) -> None:
    worker.error = {"code": "engine_error", "message": "no luck"}
    request = await submitted(gateway, priority="high")
    assert (await ended(gateway, request))["status"] == "failed"
    worker.error = None
    answer = await gateway.client.post(f"/v1/requests/{request}/retry")
    assert answer.status_code == 202 and answer.json()["retry_of"] == request
    again = await ended(gateway, answer.json()["id"])
    assert again["status"] == "completed" and again["retry_of"] == request and again["priority"] == "high"
    assert worker.seen[0].messages == worker.seen[1].messages
    gone = await gateway.client.post(f"/v1/requests/{answer.json()['id']}/retry")
    assert gone.status_code == 410  # a completed request's input goes at once


async def test_retry_of_an_unfinished_request_is_a_conflict(
    gateway: Running, fleet: object, queue: Queue, worker: FakeWorker
) -> None:
    await gateway.client.post(f"/v1/queues/{MODEL}/pause")
    request = await submitted(gateway)
    assert (await gateway.client.post(f"/v1/requests/{request}/retry")).status_code == 409
    result = await gateway.client.get(f"/v1/requests/{request}/result")
    assert result.status_code == 202 and result.json()["position"] == 1


async def test_an_etag_spares_what_has_not_changed(gateway: Running, worker: FakeWorker) -> None:
    request = await submitted(gateway)
    await ended(gateway, request)
    first = await gateway.client.get(f"/v1/requests/{request}")
    again = await gateway.client.get(f"/v1/requests/{request}", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    other = await gateway.client.get(f"/v1/requests/{request}", headers={"If-None-Match": '"x"'})
    assert other.status_code == 200


async def test_an_idempotency_key_answers_the_first_request_again(gateway: Running, worker: FakeWorker) -> None:
    headers = {"Idempotency-Key": "k-{1}:*"}
    first = await gateway.client.post("/v1/requests", json=CHAT, headers=headers)
    again = await gateway.client.post("/v1/requests", json=CHAT, headers=headers)
    assert again.status_code == 202 and again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true" and "idempotency-replayed" not in first.headers
    other = await gateway.client.post("/v1/requests", json={**CHAT, "max_tokens": 9}, headers=headers)
    assert other.status_code == 422 and other.json()["error"]["code"] == "idempotency_mismatch"
    waited = await gateway.client.post("/v1/requests", json=CHAT, headers={**headers, "Prefer": "wait=10"})
    assert waited.status_code == 200 and waited.json()["id"] == first.json()["id"]
    assert waited.json()["text"] == "w0 w1 w2 "
    assert len(worker.seen) == 1


async def test_the_list_is_newest_first_with_filters_and_a_cursor(gateway: Running, worker: FakeWorker) -> None:
    ids = [await submitted(gateway) for _ in range(7)]
    for request in ids:
        await ended(gateway, request)
    await gateway.client.post(f"/v1/queues/{MODEL}/pause")
    waiting = await submitted(gateway)
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await gateway.client.get(f"/v1/requests?limit=3&cursor={cursor}")).json()
        assert page["object"] == "list" and len(page["data"]) <= 3
        seen += [r["id"] for r in page["data"]]
        assert [r["created_at_ms"] for r in page["data"]] == sorted((r["created_at_ms"] for r in page["data"]), reverse=True)
        if not page["next_cursor"]:
            break
        cursor = page["next_cursor"]
    assert sorted(seen) == sorted([*ids, waiting]) and seen[0] == waiting
    only = (await gateway.client.get("/v1/requests?status=queued")).json()["data"]
    assert [r["id"] for r in only] == [waiting]
    by_worker = (await gateway.client.get(f"/v1/requests?worker={worker.id}&model={MODEL}")).json()["data"]
    assert len(by_worker) == 7
    assert (await gateway.client.get("/v1/requests?model=other")).json()["data"] == []
    assert (await gateway.client.get("/v1/requests?since=2999-01-01T00:00:00Z")).json()["data"] == []
    for bad in ("status=odd", "limit=0", "limit=x", "cursor=zz", "since=yesterday"):
        answer = await gateway.client.get(f"/v1/requests?{bad}")
        assert answer.status_code == 400 and answer.json()["param"] == bad.split("=")[0]


async def test_queues_pause_resume_purge(gateway: Running, worker: FakeWorker) -> None:
    paused = await gateway.client.post(f"/v1/queues/{MODEL}/pause")
    assert paused.json()["paused"] is True
    requests = [await submitted(gateway, priority=p) for p in ("low", "low", "normal")]
    queues = (await gateway.client.get("/v1/queues")).json()["data"]
    assert queues[0]["model"] == MODEL and queues[0]["backlog"] == 3
    assert {line["priority"]: line["backlog"] for line in queues[0]["lines"]} == {"high": 0, "normal": 1, "low": 2}
    assert (await gateway.client.post(f"/v1/queues/{MODEL}/purge?priority=low")).json()["removed"] == 2
    assert (await gateway.client.post(f"/v1/queues/{MODEL}/resume")).json()["paused"] is False
    states = [(await ended(gateway, request))["status"] for request in requests]
    assert states == ["cancelled", "cancelled", "completed"]
    assert (await gateway.client.post("/v1/queues/nobody/x/pause")).status_code == 404


async def test_workers_are_shown(gateway: Running, worker: FakeWorker) -> None:
    data = (await gateway.client.get("/v1/workers")).json()["data"]
    assert [w["id"] for w in data] == [worker.id]
    assert data[0]["state"] == "ready" and data[0]["model"] == MODEL and 0 <= data[0]["heartbeat_age_ms"] < 60_000


async def test_an_opaque_input_is_passed_on_whole(gateway: Running, worker: FakeWorker) -> None:
    document = {"image": [1, 2, {"a": None}], "n": 3}
    answer = await gateway.client.post("/v1/requests", json={"model": MODEL, "input": document}, headers={"Prefer": "wait=10"})
    assert answer.status_code == 200, answer.text
    assert worker.seen[0].input == document and worker.seen[0].kind == "opaque"


async def test_forgotten_output_answers_410_and_unknown_ids_404(gateway: Running, worker: FakeWorker, redis: object) -> None:
    request = await submitted(gateway)
    await ended(gateway, request)
    await redis.delete(f"{{s0}}:request:{request}", f"{{s0}}:output:{request}")  # type: ignore[attr-defined]
    for page in ("", "/events", "/result"):
        answer = await gateway.client.get(f"/v1/requests/{request}{page}")
        assert answer.status_code == 410 and answer.json()["error"]["code"] == "stream_expired", page
    for unknown in ("s0." + "0" * 32, "s0.x", "{s0}:timers", "..", "s0.%0d%0a"):
        answer: httpx2.Response = await gateway.client.get(f"/v1/requests/{unknown}/result")
        assert answer.status_code == 404, unknown
