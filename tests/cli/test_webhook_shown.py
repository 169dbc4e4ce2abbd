"""`penstock submit --webhook` and `penstock request show`: who is told, where that stands, each try."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from dispatch.fleet import Fleet
from dispatch.outbox import Outbox, Verdict
from dispatch.queue import Queue
from dispatch.settings_scale import WebhookSettings
from penstock.cli import main
from tests.gateway.helpers import FakeWorker, Running, serving, settings_for
from tests.servers import RealServer, binaries, running

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0cyBvZiB3ZWJob29rcw=="


@pytest.fixture(scope="session")
def server() -> Iterator[RealServer]:
    with running(min(binaries())) as found:
        yield found


@pytest.fixture
async def gateway(redis: Redis, server_url: str) -> AsyncIterator[Running]:
    settings = settings_for(server_url).model_copy(update={"webhook": WebhookSettings(secret=SecretStr(SECRET))})
    async with serving(settings) as found:
        yield found


async def test_a_webhook_is_asked_for_and_its_tries_are_shown(
    gateway: Running, queue: Queue, fleet: Fleet, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    await FakeWorker(queue, fleet).publish()

    async def penstock(*arguments: str) -> str:
        code = await asyncio.to_thread(main, (*arguments, "--server", gateway.url))
        said = capsys.readouterr()
        assert code == 0, said.err
        return str(said.out)

    url = "https://example.com/hook?token=hush"
    request = json.loads(await penstock("submit", "hello", "--detach", "--webhook", url, "-o", "json"))["id"]
    lines = (await penstock("request", "show", request)).splitlines()
    assert "webhook https://example.com/hook?... on completed, failed, cancelled, expired: not yet owed" in lines
    await queue.cancel(request)
    outbox = Outbox(redis, queue.rules)
    await outbox.note(request, 1, Verdict.AGAIN, error="timeout", took_ms=5003, wait_ms=5000)
    await outbox.note(request, 2, Verdict.GIVEN_UP, status=410, error="http_410", took_ms=12)
    lines = (await penstock("request", "show", request)).splitlines()
    assert lines[-3].endswith("cancelled, expired: given up")
    assert lines[-2].startswith("try 1 at ") and lines[-2].endswith(": timeout after 5003 ms")
    assert lines[-1].startswith("try 2 at ") and lines[-1].endswith(": http_410 after 12 ms")
    assert json.loads(await penstock("request", "show", request, "-o", "json"))["webhook"]["tried"] == 2
