"""A Sentinel group under a running house: the master changes by word, by death and by silence; streams and submits go on."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx2 as httpx
import pytest
from redis import Redis

from dispatch.configuration import mask_url, secrets_of
from dispatch.durability import check_durability
from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT
from dispatch.messages import InputKind, NewRequest
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.replicas import WINDOW_S
from dispatch.rules import QueueRules
from dispatch.sentinel import parse_sentinel_url
from dispatch.settings import Durability, RedisSettings, Settings
from tests.sentinels import Group, sentinel_group
from tests.system.house import house_on
from tests.system.streams import Heard, events

ACCEPTED_AGAIN_WITHIN_S = 12


@dataclass
class Submits:
    """Somebody who submits all the time, with a key for each, and tries again when refused."""

    client: httpx.AsyncClient
    url: str
    accepted: list[str] = field(default_factory=list)
    longest_gap_s: float = 0.0

    async def run(self) -> None:
        last, n = time.monotonic(), 0
        while True:
            body = {"model": "demo", "prompt": f"Number {n}", "max_tokens": 2}
            try:
                reply = await self.client.post(self.url + "/v1/requests", json=body, headers={"idempotency-key": f"key-{n}"})
            except httpx.TransportError:
                continue
            if reply.status_code == 202:
                now = time.monotonic()
                self.longest_gap_s, last = max(self.longest_gap_s, now - last), now
                self.accepted.append(reply.json()["id"])
                n += 1
            else:
                assert reply.status_code == 503, reply.text
            await asyncio.sleep(0.05)


async def listen_with_rewinds(client: httpx.AsyncClient, url: str, heard: Heard) -> int:
    """As a native client does; how often Redis went back in time under it."""
    rewinds = 0
    async for event in events(client, url):
        if event.name == "rewind":
            rewinds += 1
            heard.events.clear()
        elif event.name != "status":
            heard.events.append(event)
        if event.name == "end":
            return rewinds
    raise AssertionError("the stream broke off")


def change_master(group: Group, how: str) -> None:
    master = group.master()
    if how == "asked":
        group.ask("FAILOVER", "penstock")
    else:
        group.servers[master].send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)


@pytest.mark.parametrize("how", ["asked", "killed", "silent"])
async def test_streams_and_submits_outlive_the_master(how: str) -> None:
    with sentinel_group() as group, house_on(group.url) as home:
        gateway = home.gateway(PENSTOCK_QUEUE__LEASE_S="10")
        home.worker("--engine", "sim", "--speed", "1", PENSTOCK_QUEUE__LEASE_S="10")
        home.until_ready(gateway, 1)
        async with httpx.AsyncClient(timeout=30) as client:
            body = {"model": "demo", "prompt": "Tell me of the river", "max_tokens": 300}
            request = (await client.post(gateway.url + "/v1/requests", json=body)).json()["id"]
            heard = Heard()
            stream = asyncio.create_task(listen_with_rewinds(client, f"{gateway.url}/v1/requests/{request}/events", heard))
            submits = Submits(client, gateway.url)
            submitting = asyncio.create_task(submits.run())
            deadline = time.monotonic() + 20
            while len(heard.events) < 5 or len(submits.accepted) < 3:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            before = await asyncio.to_thread(group.master)
            await asyncio.to_thread(change_master, group, how)
            deadline = time.monotonic() + 20
            while await asyncio.to_thread(group.master) == before:
                assert time.monotonic() < deadline, "Sentinel changed nothing"
                await asyncio.sleep(0.05)
            count = len(submits.accepted)
            while len(submits.accepted) < count + 5:
                assert time.monotonic() < deadline, "nothing is accepted any more"
                await asyncio.sleep(0.05)
            async with asyncio.timeout(40):
                await stream
            submitting.cancel()
            await asyncio.gather(submitting, return_exceptions=True)
            print(f"{how}: longest gap {submits.longest_gap_s:.2f} s, accepted {len(submits.accepted)}")
            assert submits.longest_gap_s < ACCEPTED_AGAIN_WITHIN_S
            heard.check_dense()
            assert heard.events[-1].data["state"] == "completed"
            result = (await client.get(f"{gateway.url}/v1/requests/{request}/result")).json()
            assert result["text"] == heard.text
            for role in home.roles:
                assert role.process.poll() is None, f"{role.name} ended:\n{role.log.read_text()[-3000:]}"
            for accepted in submits.accepted:
                reply = await client.get(f"{gateway.url}/v1/requests/{accepted}?wait=10")
                assert reply.status_code == 200 and reply.json()["status"] == "completed", reply.text


@dataclass
class Promised:
    """Somebody who submits and cancels all the time, and notes what was promised."""

    queue: Queue
    alive: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    longest_gap_s: float = 0.0

    async def run(self, first: int) -> None:
        last = time.monotonic()
        for n in range(first, first + 1_000_000):
            request = f"s0.{n:032x}"
            await self._until_promised(lambda r=request: self.queue.enqueue(new(r)))  # type: ignore[misc]
            self.alive.add(request)
            if n % 2:
                self.alive.discard(request)
                await self._until_promised(lambda r=request: self.queue.cancel(r))  # type: ignore[misc]
                self.cancelled.add(request)
            now = time.monotonic()
            self.longest_gap_s, last = max(self.longest_gap_s, now - last), now
            await asyncio.sleep(0.002)  # the servers of the group need the processor, too

    async def _until_promised(self, ask: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await ask()
                return
            except STORE_FAULT:
                await asyncio.sleep(0.02)


def new(request: str) -> NewRequest:
    return NewRequest(request, "demo", b"{}", InputKind.CHAT, 10, 3_600_000)


async def until(condition: Callable[[], bool], what: str, patience_s: float = 20) -> None:
    deadline = time.monotonic() + patience_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        await asyncio.sleep(0.05)


async def test_no_promise_is_undone_by_a_failover_that_was_asked_for() -> None:
    """The old master serves on for a while, with a replica that acknowledges what it writes."""
    with sentinel_group(replicas=2) as group:
        redis = connect(group.url)
        promised = Promised(Queue(redis, QueueRules(max_backlog=1_000_000), wait_replica_ms=500))
        submitting = [asyncio.create_task(promised.run(1 + k * 1_000_000)) for k in range(8)]
        try:
            for again in (True, False):
                before, count = group.master(), len(promised.cancelled)
                await until(lambda c=count: len(promised.cancelled) > c + 100, "promises are made")  # type: ignore[misc]
                group.ask("FAILOVER", "penstock")
                await until(lambda b=before: group.master() != b, "the master is another one")  # type: ignore[misc]
                count = len(promised.cancelled)
                await until(lambda c=count: len(promised.cancelled) > c + 100, "promises are made again")  # type: ignore[misc]
                if again:
                    await asyncio.to_thread(group.until_in_step)
            for task in submitting:
                assert not task.done(), task
                task.cancel()
            await asyncio.gather(*submitting, return_exceptions=True)
            print(f"longest gap {promised.longest_gap_s:.2f} s, promised {len(promised.alive) + len(promised.cancelled)}")
            with Redis(port=group.master(), decode_responses=True) as now:
                lost = [r for r in promised.alive if now.hget(f"{{s0}}:request:{r}", "state") is None]
                undone = [r for r in promised.cancelled if now.hget(f"{{s0}}:request:{r}", "state") != "cancelled"]
            assert not lost and not undone, f"{len(lost)} lost, {len(undone)} undone"
        finally:
            for task in submitting:
                task.cancel()
            await redis.aclose()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "silent"])
async def test_a_replica_that_goes_holds_promises_up_for_a_while_only(how: signal.Signals) -> None:
    with sentinel_group(replicas=2) as group:
        redis = connect(group.url)
        promised = Promised(Queue(redis, QueueRules(max_backlog=1_000_000), wait_replica_ms=500))
        submitting = asyncio.create_task(promised.run(1))
        try:
            await until(lambda: len(promised.cancelled) > 20, "promises are made")
            master = group.master()
            next(process for port, process in group.servers.items() if port != master).send_signal(how)
            count = len(promised.alive)
            await until(lambda: len(promised.alive) > count + 20, "promises are made again", 15)
            print(f"longest gap {promised.longest_gap_s:.2f} s")
            assert WINDOW_S / 2 < promised.longest_gap_s < WINDOW_S + (2.5 if how is signal.SIGKILL else 5)
        finally:
            submitting.cancel()
            await asyncio.gather(submitting, return_exceptions=True)
            await redis.aclose()


async def test_a_group_can_be_replicated() -> None:
    with sentinel_group() as group:
        redis = connect(group.url)
        try:
            with pytest.raises(PenstockError, match="without any replica"):
                await check_durability(redis, Durability.REPLICATED)
            await redis.config_set("min-replicas-to-write", 1)
            await check_durability(redis, Durability.REPLICATED)
        finally:
            await redis.aclose()


@pytest.mark.parametrize(
    "url", ["redis+sentinel:///m", "redis+sentinel://a:1", "redis+sentinel://a:x/m", "redis+sentinel://a/m/x"]
)
def test_a_url_that_is_none_is_told(url: str) -> None:
    with pytest.raises(PenstockError) as caught:
        parse_sentinel_url(url)
    assert caught.value.code == "bad_setting" and "redis+sentinel://" in caught.value.hint


def test_a_urls_parts() -> None:
    parts = parse_sentinel_url("redis+sentinel://u:p%40w@a:1,[::1]:2,c/mymaster/3?sentinel_password=s")
    assert parts.sentinels == (("a", 1), ("::1", 2), ("c", 26379))
    assert (parts.service, parts.db, parts.username, parts.password, parts.sentinel_password) == ("mymaster", 3, "u", "p@w", "s")


def test_its_passwords_are_masked() -> None:
    url = "redis+sentinel://u:secret-one@a:1,b:2/m/0?sentinel_password=secret-two"
    assert mask_url(url) == "redis+sentinel://u:***@a:1,b:2/m/0?sentinel_password=***"
    assert secrets_of(Settings(redis=RedisSettings(url=url))) == ("secret-one", "secret-two")
