"""Dead letters over HTTP: listed, shown without their prompt, retried once, forgotten; each tenant sees its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from dispatch import messages as m
from dispatch.fleet import Fleet
from dispatch.keys import ShardKeys
from dispatch.queue import Queue
from penstock.cli import main
from penstock.failures import USAGE
from tests.gateway.helpers import MODEL, FakeWorker, Running, serving, settings_for

SECRET = "a prompt nobody may read by the way"
KEYS = ShardKeys("s0")


class Killer(FakeWorker):
    """A worker whose engine dies of every request."""

    async def work(self, grant: m.Grant) -> None:
        if await self.queue.begin(grant) is not None:
            await self.queue.retry(grant, "engine_crashed", "worker w-1: it broke")


@pytest.fixture
async def killer(queue: Queue, fleet: Fleet) -> AsyncIterator[FakeWorker]:
    worker = Killer(queue, fleet)
    await worker.publish()
    task = asyncio.create_task(worker.run())
    yield worker
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def die(gateway: Running, headers: dict[str, str] | None = None, **more: object) -> str:
    body = {"model": MODEL, "prompt": SECRET, "max_tokens": 4, **more}
    answer = await gateway.client.post("/v1/requests", json=body, headers=headers or {})
    assert answer.status_code == 202, answer.text
    request = str(answer.json()["id"])
    ended = await gateway.client.get(f"/v1/requests/{request}?wait=10", headers=headers or {})
    assert ended.json()["status"] == "failed"
    return request


@pytest.fixture
async def gateway(redis: object, server_url: str) -> AsyncIterator[Running]:
    async with serving(settings_for(server_url, queue={"max_attempts": 1})) as found:
        yield found


async def test_listed_newest_first_in_pages(gateway: Running, killer: FakeWorker) -> None:
    died = [await die(gateway) for _ in range(3)]
    page = (await gateway.client.get("/v1/dead?limit=2")).json()
    assert page["object"] == "list" and [d["id"] for d in page["data"]] == [died[2], died[1]]
    letter = page["data"][0]
    assert (letter["model"], letter["code"], letter["charged"], letter["crashes"]) == (MODEL, "engine_crashed", 1, 0)
    assert letter["worker"] == "w-1" and "it broke" in letter["message"] and letter["at_ms"] > 0
    rest = (await gateway.client.get(f"/v1/dead?limit=2&cursor={page['next_cursor']}")).json()
    assert [d["id"] for d in rest["data"]] == [died[0]] and rest["next_cursor"] is None
    assert (await gateway.client.get("/v1/dead?model=other")).json()["data"] == []
    for bad in ("limit=0", "limit=x", "cursor=x"):
        assert (await gateway.client.get(f"/v1/dead?{bad}")).status_code == 400


async def test_metrics_tell_how_many_are_kept(gateway: Running, killer: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def depth() -> str:
        lines = (await gateway.client.get("/metrics")).text.splitlines()
        return next(line for line in lines if line.startswith("penstock_dead_letter_depth{"))

    assert await depth() == f'penstock_dead_letter_depth{{queue="{MODEL}"}} 0.0'
    died = [await die(gateway) for _ in range(3)]
    assert await depth() == f'penstock_dead_letter_depth{{queue="{MODEL}"}} 3.0'
    assert (await gateway.client.delete(f"/v1/dead/{died[0]}")).status_code < 300
    assert await depth() == f'penstock_dead_letter_depth{{queue="{MODEL}"}} 2.0'
    monkeypatch.setattr("gateway.routes.ops.MOST_DEAD_LETTERS", 1)
    assert await depth() == f'penstock_dead_letter_depth{{queue="{MODEL}"}} 1.0'


async def test_the_prompt_is_shown_only_when_asked_for(gateway: Running, killer: FakeWorker) -> None:
    request = await die(gateway)
    listed = await gateway.client.get("/v1/dead")
    shown = await gateway.client.get(f"/v1/dead/{request}")
    assert SECRET not in listed.text and SECRET not in shown.text
    assert shown.json()["input_kept"] is True and shown.json()["request"]["status"] == "failed"
    assert (await gateway.client.get(f"/v1/dead/{request}?input=1")).json()["input"]["prompt"] == SECRET


async def test_a_retry_is_one_new_request_and_takes_the_letter_off(gateway: Running, killer: FakeWorker, queue: Queue) -> None:
    request = await die(gateway)
    await queue.pause(MODEL, True)
    letters = [letter async for letter in queue.dead_letters()]
    answers = await asyncio.gather(*(gateway.client.post(f"/v1/dead/{request}/retry") for _ in range(4)))
    made = {a.json()["id"] for a in answers if a.status_code == 202}
    assert len(made) == 1 and {a.status_code for a in answers} <= {202, 404}
    assert answers[0].json()["retry_of"] == request
    new = made.pop()
    kept = await queue.input(new)
    assert kept is not None and kept.id == new and kept.prompt == SECRET
    assert (await gateway.client.get("/v1/dead")).json()["data"] == []
    assert (await gateway.client.get(f"/v1/dead/{request}")).status_code == 404
    assert await queue.forget_dead(letters[0]) is False
    await queue.purge(MODEL)


async def test_what_is_forgotten_is_kept_no_longer_than_others(
    gateway: Running, killer: FakeWorker, queue: Queue, redis: object
) -> None:
    one, other = await die(gateway), await die(gateway)
    assert (await gateway.client.delete(f"/v1/dead/{one}")).json()["id"] == one
    assert (await gateway.client.delete(f"/v1/dead/{one}")).status_code == 404
    for key in (KEYS.request(one), KEYS.input(one), KEYS.output(one)):
        assert 0 < await redis.pttl(key) <= queue.rules.retention_ms  # type: ignore[attr-defined]
    assert (await gateway.client.get(f"/v1/requests/{one}")).json()["status"] == "failed"
    assert (await gateway.client.post("/v1/dead/purge?model=other")).json()["removed"] == 0
    assert (await gateway.client.post("/v1/dead/purge")).json()["removed"] == 1
    assert (await gateway.client.get(f"/v1/dead/{other}")).status_code == 404


async def test_a_damaged_letter_does_not_hide_the_others(gateway: Running, killer: FakeWorker, redis: object) -> None:
    request = await die(gateway)
    await redis.xadd(KEYS.dead, {"who": "knows"})  # type: ignore[attr-defined]
    assert [d["id"] for d in (await gateway.client.get("/v1/dead")).json()["data"]] == [request]


async def test_another_tenants_letter_does_not_exist(redis: object, server_url: str, killer: FakeWorker) -> None:
    keys = ("first-key-of-tests", "second-key-of-tests")
    async with serving(settings_for(server_url, keys=keys, queue={"max_attempts": 1})) as gateway:
        mine, theirs = ({"Authorization": f"Bearer {key}"} for key in keys)
        request = await die(gateway, mine)
        assert (await gateway.client.get("/v1/dead", headers=theirs)).json()["data"] == []
        for method, page in (("GET", ""), ("DELETE", ""), ("POST", "/retry")):
            answer = await gateway.client.request(method, f"/v1/dead/{request}{page}", headers=theirs)
            assert answer.status_code == 404, (method, page)
        assert (await gateway.client.post("/v1/dead/purge", headers=theirs)).json()["removed"] == 0
        assert [d["id"] for d in (await gateway.client.get("/v1/dead", headers=mine)).json()["data"]] == [request]


async def test_from_the_shell(gateway: Running, killer: FakeWorker, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = await die(gateway), await die(gateway)

    async def said(*words: str) -> str:
        assert await asyncio.to_thread(main, ["dead", *words, "--server", gateway.url]) == 0
        return capsys.readouterr().out

    for listing in ([], ["list"]):
        assert first in (table := await said(*listing)) and "engine_crashed" in table and SECRET not in table
    assert SECRET not in await said("show", first)
    assert SECRET in await said("show", first, "--input", "-o", "json")
    assert f'"retry_of": "{first}"' in await said("retry", first, "-o", "json")
    assert second in await said("purge", second)
    third = await die(gateway)
    for words in (["purge"], ["purge", "--model", MODEL]):  # no terminal to ask at, nor told --yes
        assert await asyncio.to_thread(main, ["dead", *words, "--server", gateway.url]) == USAGE
        refused = capsys.readouterr().err
        assert "Nobody can be asked" in refused and "why:" in refused and "--yes" in refused
    assert third in await said("list")
    assert "removed" in await said("purge", "--yes")
    assert third not in await said("list")
