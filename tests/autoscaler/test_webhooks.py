"""From an ending to its receiver: signed, tried again, and never lost, whoever dies in between."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from pydantic import SecretStr
from redis import Redis as Blocking
from redis.asyncio import Redis

from autoscaler.jobs.line import WEBHOOKS, JobLine
from autoscaler.jobs.payload import key_of
from autoscaler.webhooks.delivery import Delivery
from autoscaler.webhooks.relay import MOST_WAITING, Relay, again_s
from autoscaler.webhooks.runner import run_webhooks
from dispatch import messages as m
from dispatch.configuration import as_environment
from dispatch.errors import PenstockError
from dispatch.outbox import Outbox
from dispatch.queue import Queue
from dispatch.rules import QueueRules
from dispatch.settings import RedisSettings, Settings
from dispatch.settings_scale import AgentSettings, WebhookSettings
from dispatch.webhooks import Webhook
from tests.autoscaler.receiver import OK, Receiver, answer
from tests.gateway.helpers import until
from tests.servers import RealServer, binaries, running

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0cyBvZiB3ZWJob29rcw=="
HUSH = "?token=hush-hush"
SETTINGS = WebhookSettings(secret=SecretStr(SECRET), allow_private=True, tries=3, timeout_s=0.3, backoff_s=0.05)


@pytest.fixture(scope="session")
def server() -> Iterator[RealServer]:
    with running("valkey" if "valkey" in binaries() else "redis") as found:
        yield found


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver().listening() as found:
        yield found


@pytest.fixture
def rq_url(server_url: str) -> str:
    """A database of RQ's own: it keeps two sets for ever."""
    url = f"{server_url}?db=3"
    with Blocking.from_url(url) as client:
        client.flushdb()
    return url


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


class House:
    """A queue, its outbox and a delivery, under a clock of their own."""

    def __init__(self, redis: Redis, settings: WebhookSettings = SETTINGS) -> None:
        self.clock = Clock()
        self.queue = Queue(redis, QueueRules(), now=self.clock)
        self.outbox = Outbox(redis, QueueRules(), now=self.clock)
        self.delivery = Delivery(self.outbox, settings)

    async def end(self, url: str, events: str = "") -> str:
        return await end_one(self.queue, url, events)

    async def round(self) -> list[str]:
        """What relay and runner do, without RQ between them."""
        due = await self.outbox.take(again_ms=30_000)
        return [await self.delivery.deliver(each.request, each.tried + 1) for each in due]

    async def webhook(self, request: str) -> Webhook:
        found = await self.outbox.webhook(request)
        assert found is not None
        return found


async def end_one(queue: Queue, url: str, events: str = "") -> str:
    """A request that ended, cancelled while it waited."""
    request = m.new_id()
    document = m.encode(m.InferenceRequest(request, "demo", m.InputKind.CHAT, m.Sampling(10), prompt="a secret prompt"))
    new = m.NewRequest(
        request, "demo", document, m.InputKind.CHAT, 10, deadline_ms=600_000, webhook=url + HUSH, webhook_events=events
    )
    await queue.enqueue(new)
    await queue.cancel(request)
    return request


@pytest.fixture
def house(redis: Redis) -> House:
    return House(redis)


async def test_the_official_client_verifies_what_arrives(house: House, receiver: Receiver) -> None:
    request = await house.end(receiver.url)
    assert await house.round() == ["delivered"]
    got = receiver.got[0]
    with OpenAI(api_key="none", webhook_secret=SECRET) as client:
        event: Any = client.webhooks.unwrap(got.body, got.headers)
    assert event.id == got.headers["webhook-id"] == f"evt_{request.removeprefix('s0.')}"
    assert event.type == "request.cancelled" and event.data.id == request and event.object == "event"
    assert event.created_at == house.clock.now // 1000
    assert b"secret prompt" not in got.body and got.path == "/hook" + HUSH
    with (
        OpenAI(api_key="none", webhook_secret="whsec_" + "b3RoZXIgc2VjcmV0IG90aGVyIHNlY3JldA==") as other,
        pytest.raises(ValueError),
    ):
        other.webhooks.unwrap(got.body, got.headers)
    with OpenAI(api_key="none", webhook_secret=SECRET) as client, pytest.raises(ValueError):
        client.webhooks.unwrap(got.body.replace(b"cancelled", b"completed"), got.headers)
    shown = await house.webhook(request)
    assert shown.state == "delivered" and [each.status for each in shown.tries] == [204]
    assert await house.outbox.owed() == 0


async def test_a_receiver_that_fails_and_then_works_gets_the_same_event(house: House, receiver: Receiver) -> None:
    receiver.answers = [answer(500), answer(302, "location: /"), OK]
    request = await house.end(receiver.url)
    for state in ("owed", "owed", "delivered"):
        assert await house.round() == [state]
        assert await house.round() == [], "not before its time"
        house.clock.now += 10_000
    assert {got.headers["webhook-id"] for got in receiver.got} == {f"evt_{request.removeprefix('s0.')}"}
    assert len({got.body for got in receiver.got}) == 1
    tries = (await house.webhook(request)).tries
    assert [(each.status, each.error) for each in tries] == [(500, "http_500"), (302, "http_302"), (204, "")]
    assert tries[0].at_ms < tries[1].at_ms < tries[2].at_ms


async def test_it_is_given_up_after_all_tries_and_at_once_when_gone(house: House, receiver: Receiver) -> None:
    receiver.answers = [answer(503)]
    request = await house.end(receiver.url)
    states = []
    while due := await house.round():
        states += due
        house.clock.now += 10_000
    assert states == ["owed", "owed", "given_up"] and len(receiver.got) == 3
    receiver.answers = [answer(410)]
    gone = await house.end(receiver.url)
    assert await house.round() == ["given_up"]
    assert [(await house.webhook(each)).state for each in (request, gone)] == ["given_up"] * 2
    assert await house.outbox.owed() == 0


async def test_what_the_receiver_asks_for_is_waited(house: House, receiver: Receiver) -> None:
    receiver.answers = [answer(429, "retry-after: 60"), OK]
    await house.end(receiver.url)
    assert await house.round() == ["owed"]
    house.clock.now += 59_000
    assert await house.round() == []
    house.clock.now += 1_000
    assert await house.round() == ["delivered"]


async def test_an_address_inside_is_a_failed_try_without_a_connection(redis: Redis, receiver: Receiver) -> None:
    house = House(redis, SETTINGS.model_copy(update={"allow_private": False}))
    request = await house.end(receiver.url)
    assert await house.round() == ["owed"]
    assert [each.error for each in (await house.webhook(request)).tries] == ["address_refused"] and not receiver.connections


async def test_a_try_that_was_made_is_not_made_again(house: House, receiver: Receiver) -> None:
    receiver.answers = [answer(500), OK]
    request = await house.end(receiver.url)
    assert await house.delivery.deliver(request, 1) == "owed"
    assert await house.delivery.deliver(request, 1) == "superseded"
    assert await house.delivery.deliver(request, 2) == "delivered"
    assert await house.delivery.deliver(request, 3) == "superseded"
    assert await house.delivery.deliver("s0." + "0" * 32, 1) == "unknown"
    assert len(receiver.got) == 2


@pytest.mark.parametrize("step", ["ended", "taken", "sent", "noted"])
async def test_a_crash_after_any_step_loses_none(house: House, receiver: Receiver, step: str) -> None:
    """Nothing of a process but what it wrote outlives it: the steps up to there, then others go on."""
    request = await house.end(receiver.url)
    if step != "ended":
        assert await house.outbox.take(again_ms=30_000)
    if step == "sent":
        await house.delivery._send(await house.webhook(request))
    if step == "noted":
        assert await house.delivery.deliver(request, 1) == "delivered"
    assert await house.outbox.owed() == (0 if step == "noted" else 1)
    house.clock.now += 30_000
    assert await house.round() == ([] if step == "noted" else ["delivered"])
    assert len(receiver.got) == (2 if step == "sent" else 1)
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    assert (await house.webhook(request)).state == "delivered" and await house.outbox.owed() == 0


async def test_no_url_nor_what_was_asked_in_logs(house: House, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answers = [answer(500), OK]
    await house.end(receiver.url)
    await house.round()
    house.clock.now += 10_000
    await house.round()
    said = " ".join(str(vars(record)) for record in caplog.records)
    assert "a webhook was delivered" in said
    for secret in ("hush", "/hook", SECRET, "secret prompt"):
        assert secret not in said


# ---- with RQ between relay and delivery


def settings_for(server_url: str, rq_url: str, **webhook: Any) -> Settings:
    return Settings(
        redis=RedisSettings(url=server_url),
        agent=AgentSettings(rq_url=rq_url),
        webhook=SETTINGS.model_copy(update={"tries": 20, **webhook}),
    )


@contextlib.asynccontextmanager
async def webhooks_process(
    settings: Settings, said: int = asyncio.subprocess.DEVNULL
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`said`: where its log goes. No pipe: nobody reads it meanwhile, and a full one would stop the process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "autoscaler.webhooks"),
        env={**os.environ, **as_environment(settings)},
        stderr=said,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_process_relays_delivers_and_ends_when_told(
    redis: Redis, queue: Queue, server_url: str, rq_url: str, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.answers = [answer(500), OK]
    log = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    requests = [await end_one(queue, receiver.url) for _ in range(20)]
    async with webhooks_process(settings_for(server_url, rq_url), log) as process:
        await until(lambda: _all_delivered(Outbox(redis, queue.rules), requests), 15)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        os.close(log)
        said = (tmp_path / "log").read_bytes()
        assert said.count(b"a webhook was delivered") == 20
        assert b"hush" not in said and b"secret prompt" not in said and SECRET.encode() not in said
    assert len(receiver.got) == 21


async def _all_delivered(outbox: Outbox, requests: list[str]) -> bool:
    found = [await outbox.webhook(request) for request in requests]
    return all(each is not None and each.state == "delivered" for each in found)


async def test_killed_in_the_middle_of_a_try_another_delivers(
    redis: Redis, queue: Queue, server_url: str, rq_url: str, receiver: Receiver
) -> None:
    receiver.answers = [None, OK]
    request = await end_one(queue, receiver.url)
    async with webhooks_process(settings_for(server_url, rq_url, timeout_s=30.0)) as process:
        await until(lambda: receiver.got, 10)
        process.kill()
    owed = await Outbox(redis, queue.rules).webhook(request)
    assert owed is not None and (owed.state, owed.tried) == ("owed", 0)
    await redis.zadd("{s0}:outbox", {request: 0})  # the wait for the one that died is over
    async with webhooks_process(settings_for(server_url, rq_url)):
        await until(lambda: _all_delivered(Outbox(redis, queue.rules), [request]), 15)
    assert len(receiver.got) == 2 and len({got.headers["webhook-id"] for got in receiver.got}) == 1


async def test_jobs_that_rq_lost_are_put_again(
    redis: Redis, queue: Queue, server_url: str, rq_url: str, receiver: Receiver
) -> None:
    settings = settings_for(server_url, rq_url, timeout_s=0.1)
    assert again_s(settings.webhook) == 2.5
    request = await end_one(queue, receiver.url)
    outbox, line = Outbox(redis, queue.rules), JobLine(rq_url, key_of(SECRET))
    assert await Relay(outbox, line, settings.webhook).once() == 1
    assert await line.waiting(WEBHOOKS) == 1
    with Blocking.from_url(rq_url) as raw:
        raw.flushdb()
    async with webhooks_process(settings):
        await until(lambda: _all_delivered(outbox, [request]), 15)
    await line.close()
    assert len(receiver.got) == 1


async def test_a_runner_that_is_away_finds_no_heap(queue: Queue, redis: Redis, rq_url: str, receiver: Receiver) -> None:
    for _ in range(MOST_WAITING + 20):
        await end_one(queue, receiver.url)
    outbox, line = Outbox(redis, queue.rules), JobLine(rq_url, key_of(SECRET))
    relays = [Relay(outbox, line, SETTINGS) for _ in range(2)]
    assert [await relay.once() for relay in (*relays, *relays)] == [MOST_WAITING, 0, 0, 0]
    assert await outbox.owed() == MOST_WAITING + 20
    await line.close()


async def test_a_put_that_failed_is_made_again(queue: Queue, redis: Redis, rq_url: str, receiver: Receiver) -> None:
    clock = Clock()
    queue = Queue(redis, queue.rules, now=clock)
    outbox, line = Outbox(redis, queue.rules, now=clock), JobLine(rq_url, key_of(SECRET))
    await end_one(queue, receiver.url)

    class Dying(JobLine):
        async def put(self, *_: Any, **__: Any) -> str:
            raise OSError("the relay died here")

    dying = Dying(rq_url, key_of(SECRET))
    with pytest.raises(OSError):
        await Relay(outbox, dying, SETTINGS).once()
    relay = Relay(outbox, line, SETTINGS)
    assert await relay.once() == 0
    clock.now += int(again_s(SETTINGS) * 1000)
    assert await relay.once() == 1 and await line.waiting(WEBHOOKS) == 1
    await line.close()
    await dying.close()


def test_without_a_secret_nobody_starts(server_url: str) -> None:
    with pytest.raises(PenstockError) as refused:
        run_webhooks(Settings(redis=RedisSettings(url=server_url)))
    assert refused.value.param == "webhook.secret"


async def test_killed_again_and_again_none_is_lost(
    redis: Redis, queue: Queue, server_url: str, rq_url: str, receiver: Receiver
) -> None:
    """Relay and runner die together, at any step, while they work."""
    settings = settings_for(server_url, rq_url, timeout_s=0.1)
    requests = [await end_one(queue, receiver.url) for _ in range(60)]
    for enough in (5, 25):
        async with webhooks_process(settings) as process:
            await until(lambda enough=enough: len(receiver.got) >= enough, 15)  # type: ignore[misc]
            process.kill()
    async with webhooks_process(settings):
        await until(lambda: _all_delivered(Outbox(redis, queue.rules), requests), 20)
    assert {got.headers["webhook-id"] for got in receiver.got} == {f"evt_{each.removeprefix('s0.')}" for each in requests}
    assert await Outbox(redis, queue.rules).owed() == 0


async def test_who_asks_for_none_pays_for_none(redis: Redis, queue: Queue, receiver: Receiver) -> None:
    await end_one(queue, receiver.url)  # loads the scripts

    async def calls(url: str) -> dict[str, int]:
        await redis.config_resetstat()
        new = m.NewRequest(m.new_id(), "demo", b"{}", m.InputKind.CHAT, 10, deadline_ms=600_000, webhook=url)
        await queue.enqueue(new)
        await queue.cancel(new.id)
        return {
            name: each["calls"] for name, each in (await redis.info("commandstats")).items() if "hset" in name or "zadd" in name
        }

    without, asked = await calls(""), await calls(receiver.url)
    assert asked["cmdstat_hset"] == without["cmdstat_hset"] + 1 and asked["cmdstat_zadd"] == without["cmdstat_zadd"] + 1


async def test_a_dead_receiver_does_not_hold_up_others(house: House, receiver: Receiver) -> None:
    async with Receiver([None]).listening() as dead:
        assert await house.delivery.deliver(await house.end(dead.url), 1) == "owed"
        stuck = [await house.end(dead.url) for _ in range(6)]
        fine = await house.end(f"http://localhost:{receiver.port}/")
        states = await asyncio.gather(*(house.delivery.deliver(each, 1) for each in [*stuck, fine]))
    assert states == ["owed"] * 2 + ["put_off"] * 4 + ["delivered"]
    assert dead.connections == 3 and [(await house.webhook(each)).tried for each in stuck] == [1, 1, 0, 0, 0, 0]
    house.clock.now += 60_000
    assert await house.round() == ["owed"] * 7, "what was put off is tried with the others"
