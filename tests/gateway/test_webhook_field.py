"""`webhook` on a submit: taken where somebody signs it, refused by name elsewhere, shown with its tries."""

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis

from dispatch.outbox import Outbox, Verdict
from dispatch.queue import Queue
from dispatch.settings_scale import WebhookSettings
from gateway.promises import Promises
from tests.gateway.helpers import MODEL, FakeWorker, Running, serving, settings_for, until

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0cyBvZiB3ZWJob29rcw=="
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
URL = "https://example.com/hook?token=hush"


@pytest.fixture
async def signing(redis: object, server_url: str) -> AsyncIterator[Running]:
    settings = settings_for(server_url).model_copy(update={"webhook": WebhookSettings(secret=SecretStr(SECRET))})
    async with serving(settings) as found:
        yield found


async def submitted(gateway: Running, **more: object) -> str:
    answer = await gateway.client.post("/v1/requests", json={**CHAT, **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def shown(gateway: Running, request: str) -> dict[str, object]:
    document = (await gateway.client.get(f"/v1/requests/{request}")).json()["webhook"]
    assert isinstance(document, dict)
    return document


async def test_it_is_stored_owed_and_shown_with_its_tries(
    signing: Running, worker: FakeWorker, queue: Queue, redis: Redis
) -> None:
    request = await submitted(signing, webhook=URL)
    assert (await signing.client.get(f"/v1/requests/{request}?wait=10")).json()["status"] == "completed"
    assert await shown(signing, request) == {
        "url": "https://example.com/hook?...",
        "events": ["completed", "failed", "cancelled", "expired"],
        "state": "owed",
        "tried": 0,
        "tries": [],
    }
    assert "\npenstock_webhooks_owed 1.0\n" in (await signing.client.get("/metrics")).text
    outbox = Outbox(redis, queue.rules)
    tag = (await signing.client.get(f"/v1/requests/{request}")).headers["etag"]
    await outbox.note(request, 1, Verdict.AGAIN, status=503, error="http_503", took_ms=7, wait_ms=1000)
    await outbox.note(request, 2, Verdict.DELIVERED, status=204, took_ms=5)
    after = await signing.client.get(f"/v1/requests/{request}", headers={"if-none-match": tag})
    assert after.status_code == 200, "a try changes what is shown"
    assert "\npenstock_webhooks_owed 0.0\n" in (await signing.client.get("/metrics")).text
    document = after.json()["webhook"]
    assert document["state"] == "delivered" and document["tried"] == 2
    assert [(t["status"], t["error"], t["took_ms"]) for t in document["tries"]] == [(503, "http_503", 7), (204, None, 5)]
    assert "hush" not in after.text


async def test_only_the_endings_that_were_asked_for(signing: Running, worker: FakeWorker, redis: Redis, queue: Queue) -> None:
    request = await submitted(signing, webhook={"url": URL, "events": ["failed", "expired"]})
    assert (await signing.client.get(f"/v1/requests/{request}?wait=10")).json()["status"] == "completed"
    document = await shown(signing, request)
    assert document["events"] == ["failed", "expired"] and document["state"] is None
    assert await Outbox(redis, queue.rules).owed() == 0


async def test_none_asked_for_none_shown(signing: Running, worker: FakeWorker) -> None:
    request = await submitted(signing)
    assert (await signing.client.get(f"/v1/requests/{request}")).json()["webhook"] is None


@pytest.mark.parametrize(
    ("webhook", "says"),
    [
        ("ftp://example.com/x", "not an http or https URL"),
        ("https://", "not an http or https URL"),
        ("//example.com/x", "not an http or https URL"),
        ("https://user:hush@example.com/x", "holds credentials"),
        ("https://example.com/a b", "do not belong in a URL"),
        ("https://example.com/a\r\nx: y", "do not belong in a URL"),
        ("https://example.com\\@evil.example/", "do not belong in a URL"),
        ("https://éxample.com/", "do not belong in a URL"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com:99999/", "no URL that can be read"),
        ("https://example.com:0/", "port 0"),
        ("https://example.com/" + "x" * 2048, "longer than 2048"),
        ("http://127.0.0.1/x", "not on the open internet"),
        ("http://169.254.169.254/latest/meta-data", "not on the open internet"),
        ("http://[::1]:8000/", "not on the open internet"),
        ("http://[fe80::1%25eth0]/", "a host with %"),
        ("", "empty"),
        (7, "webhook"),
        ({"url": URL, "events": ["finished"]}, "webhook"),
        ({"url": URL, "events": []}, "webhook"),
        ({"url": URL, "secret": "x"}, "unknown field"),
    ],
)
async def test_what_is_no_webhook_is_refused_and_says_why(
    signing: Running, worker: FakeWorker, webhook: object, says: str
) -> None:
    answer = await signing.client.post("/v1/requests", json={**CHAT, "webhook": webhook})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "invalid_request" and says in error["message"]
    assert "hush" not in answer.text


async def test_without_a_secret_nobody_would_sign_it(gateway: Running, worker: FakeWorker) -> None:
    answer = await gateway.client.post("/v1/requests", json={**CHAT, "webhook": URL})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported" and "webhook.secret" in answer.json()["error"]["message"]
    assert "PENSTOCK_WEBHOOK__SECRET" in answer.json()["hint"]


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
async def test_routes_that_answer_on_their_connection_refuse_it(signing: Running, worker: FakeWorker, route: str) -> None:
    body = CHAT if route.endswith("chat/completions") else {"model": MODEL, "prompt": "hello"}
    answer = await signing.client.post(route, json={**body, "webhook": URL})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "unsupported" and error["param"] == "webhook" and "/v1/requests" in answer.text


async def test_a_retry_and_a_promise_carry_it(signing: Running, worker: FakeWorker, queue: Queue, redis: Redis) -> None:
    worker.error = {"code": "engine_error", "message": "boo"}
    request = await submitted(signing, webhook={"url": URL, "events": ["failed"]})
    await signing.client.get(f"/v1/requests/{request}?wait=10")
    again = (await signing.client.post(f"/v1/requests/{request}/retry")).json()["id"]
    assert (await signing.client.get(f"/v1/requests/{again}?wait=10")).json()["status"] == "failed"
    assert (await shown(signing, again))["state"] == "owed"
    # Redis forgets all: what this gateway promised goes into the line again, its webhook with it.
    waiting = await submitted(signing, webhook={"url": URL, "events": ["failed"]}, deadline_seconds=600)
    promises: Promises = signing.gateway.promises
    assert waiting in promises
    await redis.flushall()
    await worker.publish()
    promises.history_changed()

    async def owed_again() -> bool:
        found = await Outbox(redis, queue.rules).webhook(waiting)
        return found is not None and found.url == URL and found.state == "owed"

    await until(owed_again, 15)


@pytest.mark.parametrize("secret", ["hush", "whsec_hush", "whsec_" + "c2hvcnQ=", "whsec_****"])
def test_a_secret_that_signs_nothing_is_refused_unshown(secret: str) -> None:
    with pytest.raises(ValidationError) as refused:
        WebhookSettings(secret=SecretStr(secret))
    assert "whsec_ and the base64 of 24 to 64 random bytes" in str(refused.value)
