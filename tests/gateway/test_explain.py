"""Why a request is where it is: each reason code, what can never start, when it may start, and that asking changes nothing."""

import dataclasses
import random
import time
from collections import Counter
from typing import Any

import pytest
from redis.asyncio import Redis

from dispatch import messages as m
from dispatch.explaining import Explaining
from dispatch.fleet import Fleet
from dispatch.keys import ShardKeys
from dispatch.queue import Queue
from dispatch.reasons import Judged, Needs, Reason, judge
from dispatch.records import ASKED, WHAT, RequestRecord, plain_fields
from dispatch.rules import QueueRules
from dispatch.scores import Strategy
from dispatch.states import RequestState, WorkerState
from gateway.shapes import links
from tests.gateway.helpers import MODEL, FakeWorker, Running, serving, settings_for, working
from tests.gateway.stand_ins import StandIns

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
COST = 112  # 3 + 100 tokens in whole pages


async def submitted(gateway: Running, headers: dict[str, str] | None = None, **more: object) -> str:
    answer = await gateway.client.post("/v1/requests", json={**CHAT, **more}, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def why(gateway: Running, request: str) -> dict[str, Any]:
    answer = await gateway.client.get(f"/v1/requests/{request}/explain")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def only(gateway: Running, request: str) -> dict[str, Any]:
    """What is said of the one worker there is."""
    (worker,) = (await why(gateway, request))["workers"]
    return dict(worker)


@pytest.fixture
async def workers(queue: Queue, fleet: Fleet) -> StandIns:
    await FakeWorker(queue, fleet).publish()
    return StandIns(queue, fleet)


def past(redis: Redis, rules: QueueRules, seconds: float) -> Queue:
    """The queue as it would have written that long ago."""
    at_ms = int((time.time() - seconds) * 1000)
    return Queue(redis, rules, now=lambda: at_ms)


async def test_no_worker_is_there(gateway: Running, workers: StandIns) -> None:
    said = await why(gateway, await submitted(gateway))
    assert said["status"] == "queued" and said["phase"] == "waiting" and said["position"] == 1
    assert said["needs"] == {
        "cost_tokens": COST,
        "prompt_tokens": 3,
        "answer_tokens": COST - 3,
        "priority": "normal",
        "strategy": "pull",
        "session": False,
    }
    assert said["workers"] == [] and said["best_free"] is None
    assert said["impossible"]["code"] == "no_workers" and "at least 112 tokens" in said["impossible"]["to_do"]
    assert said["expected_start"]["seconds"] is None and "no worker" in said["expected_start"]["basis"]
    assert [met["code"] for met in said["meetings"]] == ["no_pull"]
    assert "cannot start" in said["summary"]


async def test_no_room_with_the_numbers_and_the_expected_start(gateway: Running, workers: StandIns) -> None:
    await workers.park("w-1", limit=200, weight=100.0)
    running = await submitted(gateway)
    await workers.beat()
    first, second = await submitted(gateway), await submitted(gateway)
    said = await why(gateway, first)
    (worker,) = said["workers"]
    assert (worker["id"], worker["code"], worker["free_tokens"], worker["limit_tokens"]) == ("w-1", "no_room", 88, 200)
    assert worker["words"] == "88 of 200 tokens are free, it needs 112"
    assert said["best_free"] == {"worker": "w-1", "free_tokens": 88, "limit_tokens": 200} and said["impossible"] is None
    assert said["position"] == 1 and said["backlog"] == 2
    assert said["expected_start"]["seconds"] == 0.2  # 24 tokens at 100 tokens/s
    met = said["meetings"][-1]
    assert (met["code"], met["worker"], met["free_tokens"]) == ("no_room", "w-1", 88)
    later = await why(gateway, second)
    assert later["position"] == 2 and later["ahead"] == {"requests": 1, "tokens": COST}
    assert later["expected_start"]["seconds"] == 1.4 and "112 tokens wait ahead" in later["expected_start"]["basis"]
    await workers.finish(running)
    await workers.beat()
    granted = await why(gateway, first)
    assert granted["status"] in ("running", "queued") and granted["run"]["worker"] == "w-1"
    assert [met["code"] for met in granted["meetings"]] == ["no_room", "granted_from_line"]
    assert "took it from the line" in granted["summary"]


async def test_the_speed_is_what_heartbeats_measured(gateway: Running, workers: StandIns) -> None:
    await workers.park("w-1", limit=200, weight=100.0)
    await workers.say("w-1", WorkerState.READY, tokens_per_s=12.0)
    await submitted(gateway)
    await workers.beat()
    said = await why(gateway, await submitted(gateway))
    assert said["expected_start"]["seconds"] == 2.0 and "12 tokens/s" in said["expected_start"]["basis"]


async def test_slots(gateway: Running, workers: StandIns) -> None:
    await workers.park("w-1", limit=10_000, slots=1)
    await submitted(gateway)
    await workers.beat()
    worker = await only(gateway, await submitted(gateway))
    assert worker["codes"] == ["slots"] and worker["words"] == "holds 1 of at most 1 requests"


async def test_a_fleet_that_shrank_is_told_at_once(gateway: Running, workers: StandIns) -> None:
    await workers.park("w-1", limit=64)
    said = await why(gateway, await submitted(gateway))
    assert said["workers"][0]["code"] == "too_small"
    assert said["impossible"]["code"] == "too_large" and "holds 64" in said["impossible"]["words"]
    assert said["expected_start"]["seconds"] is None
    await workers.park("w-2", limit=10_000, accepting=False)
    assert (await why(gateway, said["id"]))["impossible"] is None


async def test_draining_not_accepting_quarantined_and_loading(gateway: Running, workers: StandIns) -> None:
    request = await submitted(gateway)
    await workers.park("w-1", accepting=False)
    await workers.say("w-1", WorkerState.DRAINING)
    said = await why(gateway, request)
    assert said["workers"][0]["code"] == "draining" and said["impossible"]["code"] == "none_stays"
    await workers.say("w-1", WorkerState.QUARANTINED)
    assert (await only(gateway, request))["code"] == "quarantined"
    await workers.say("w-1", WorkerState.READY)
    assert (await only(gateway, request))["code"] == "not_accepting"
    await workers.say("w-2", WorkerState.LOADING, progress="weights 62 %")
    said = await why(gateway, request)
    assert {w["id"]: w["code"] for w in said["workers"]} == {"w-1": "not_accepting", "w-2": "loading"}
    assert any(w["words"] == "is loading: weights 62 %" for w in said["workers"])
    assert said["impossible"] is None and "1 loading, 1 not_accepting" in said["expected_start"]["basis"]
    await workers.say("w-2", WorkerState.READY)
    assert "no_pull" in {w["code"] for w in (await why(gateway, request))["workers"]}


async def test_unseen_and_gone(gateway: Running, workers: StandIns, redis: Redis) -> None:
    await workers.park("w-1", limit=200)
    await submitted(gateway)
    await workers.beat()
    request = await submitted(gateway)
    await redis.hset("{s0}:worker:w-1", "seen", int((time.time() - 10) * 1000))
    said = await why(gateway, request)
    (worker,) = said["workers"]
    assert worker["codes"] == ["unseen", "no_room"] and 10 <= worker["unseen_s"] < 60
    assert worker["words"].startswith("was not heard of for 1") and said["best_free"] is None
    assert said["impossible"] is None and "1 unseen" in said["expected_start"]["basis"]
    await redis.hset("{s0}:worker:w-1", "seen", 0)
    assert (await only(gateway, request))["words"].startswith("was not heard of since it let a grant lapse")
    await redis.hset("{s0}:worker:w-1", "seen", int((time.time() - 10) * 1000))
    await redis.delete("worker:w-1")
    said = await why(gateway, request)
    assert [w["code"] for w in said["workers"]] == ["gone"] and said["impossible"]["code"] == "no_workers"
    await redis.hset("{s0}:worker:w-1", "seen", int((time.time() - 100) * 1000))
    assert (await why(gateway, request))["workers"] == []


async def test_barred(gateway: Running, workers: StandIns, queue: Queue) -> None:
    await workers.park("w-1")
    await workers.say("w-1", WorkerState.READY)
    await queue.abandon("w-1", "its engine died")
    said = await why(gateway, await submitted(gateway))
    assert said["workers"][0]["code"] == "barred" and said["impossible"]["code"] == "none_stays"


async def test_paused(gateway: Running, workers: StandIns, queue: Queue) -> None:
    await workers.park("w-1")
    await queue.pause(MODEL, True)
    said = await why(gateway, await submitted(gateway))
    assert said["paused"] and said["workers"][0]["code"] == "paused" and said["impossible"] is None
    assert said["expected_start"]["seconds"] is None and "paused" in said["expected_start"]["basis"]
    assert [met["code"] for met in said["meetings"]] == ["paused"]
    await queue.pause(MODEL, False)


async def test_a_suspect_and_who_waits_beside_it(gateway: Running, workers: StandIns, queue: Queue) -> None:
    await workers.park("w-1")
    suspect = await submitted(gateway)
    await workers.beat()
    del workers.offers["w-1"]
    await workers.park("w-2")
    await submitted(gateway)
    await workers.beat()
    assert await queue.abandon("w-1", "its engine died", [suspect]) == 1
    said = await why(gateway, suspect)
    w2 = next(w for w in said["workers"] if w["id"] == "w-2")
    assert said["suspect"] and w2["code"] == "not_empty" and said["kept_by"]["worker"] == "w-2"
    assert "runs alone" in said["kept_by"]["words"] and said["meetings"][-1]["code"] == "alone"
    other = await why(gateway, await submitted(gateway))
    w2 = next(w for w in other["workers"] if w["id"] == "w-2")
    assert w2["code"] == "kept_for_suspect" and suspect not in str(w2)


async def test_a_pinned_request_and_who_waits_beside_it(
    gateway: Running, workers: StandIns, redis: Redis, rules: QueueRules
) -> None:
    await workers.park("w-1", limit=200)
    await submitted(gateway)
    await workers.beat()
    big = m.InferenceRequest(m.new_id(), MODEL, m.InputKind.CHAT, m.Sampling(max_tokens=8))
    waited = m.NewRequest(big.id, MODEL, m.encode(big), big.kind, 160, 3_600_000)
    await past(redis, rules, 10).enqueue(waited)
    await workers.beat()
    said = await why(gateway, big.id)
    assert said["kept_by"]["worker"] == "w-1" and "72 tokens are missing" in said["kept_by"]["words"]
    assert said["workers"][0]["code"] == "no_room"
    assert [met["code"] for met in said["meetings"]][-1] == "pinned"
    assert said["needs"]["prompt_tokens"] is None and said["needs"]["strategy"] is None
    small = await only(gateway, await submitted(gateway, max_tokens=8))
    assert small["codes"] == ["kept_for_pinned"] and "keeps its next 160 tokens" in small["words"]


async def enqueued(queue: Queue, prompt_tokens: int, cost: int = 10, **more: Any) -> str:
    asked = m.InferenceRequest(m.new_id(), MODEL, m.InputKind.CHAT, m.Sampling(max_tokens=8))
    new = m.NewRequest(asked.id, MODEL, m.encode(asked), asked.kind, cost, 3_600_000, prompt_tokens=prompt_tokens, **more)
    await queue.enqueue(new)
    return asked.id


async def test_a_worker_that_has_much_to_prefill(gateway: Running, workers: StandIns, queue: Queue) -> None:
    await workers.park("w-1", limit=10_000, weight=1_000.0, prefill_weight=5_000.0)
    await enqueued(queue, 4_000)
    waits = await enqueued(queue, 20)
    said = await only(gateway, waits)
    assert said["codes"] == ["prefilling"]
    assert said["words"] == "has 4,000 prompt tokens still to prefill, takes more in about 0.2 s"
    assert (await why(gateway, waits))["meetings"][-1]["code"] == "prefilling"
    await workers.park("w-2", limit=10_000, weight=10.0)
    both = {each["id"]: each for each in (await why(gateway, waits))["workers"]}
    assert (both["w-1"]["codes"], both["w-2"]["codes"]) == (["prefilling"], ["better_soon"])
    assert "waits for that one" in both["w-2"]["words"]
    late = await why(gateway, await enqueued(queue, 20))
    assert (late["meetings"][-1]["code"], late["meetings"][-1]["worker"]) == ("better", "w-1")


async def test_other_strategies_know_of_no_closed_worker(gateway: Running, workers: StandIns, queue: Queue) -> None:
    await workers.park("w-1", limit=10_000, weight=1_000.0, prefill_weight=5_000.0)
    await enqueued(queue, 4_000)
    waits = await enqueued(queue, 20, 20_000, strategy="least_connections")
    assert (await only(gateway, waits))["codes"] == ["too_small", "no_room"]
    waits = await enqueued(queue, 20, 9_995, strategy="least_connections")
    assert (await only(gateway, waits))["codes"] == ["no_room"]
    met = await why(gateway, await enqueued(queue, 20, 100, strategy="least_connections"))
    assert met["run"]["worker"] == "w-1"


async def test_a_running_request_says_why_that_worker(gateway: Running, workers: StandIns) -> None:
    for n in range(3):
        await workers.park(f"w-{n}", weight=100.0 + n)
    request = await submitted(gateway, {"X-Penstock-Strategy": "least_connections"})
    granted = await why(gateway, request)
    assert granted["phase"] == "granted" and "not begun" in granted["summary"]
    await workers.beat()
    run = (await why(gateway, request))["run"]
    assert (run["worker"], run["strategy"], run["score"], run["compared"], run["attempt"]) == (
        "w-0",
        "least_connections",
        0,
        3,
        1,
    )
    assert run["begun_at_ms"] and run["words"] == "w-0 was chosen by least_connections: score 0, the lowest of 3"


async def test_a_request_that_is_tried_again_says_when(gateway: Running, workers: StandIns, queue: Queue) -> None:
    await workers.park("w-1")
    request = await submitted(gateway)
    await workers.beat()
    await queue.retry(workers.held[request], "engine_error", "no luck")
    said = await why(gateway, request)
    assert said["phase"] == "backoff" and said["retry"]["charged"] == 1 and "no luck" in said["summary"]
    record = await queue.record(request)
    assert record is not None and said["retry"]["not_before_ms"] == record.not_before_ms
    assert 0 <= said["expected_start"]["seconds"] <= 1.5  # 500 ms doubled once, give or take half


async def test_an_ended_request_says_how(gateway: Running, queue: Queue, fleet: Fleet) -> None:
    async with working(FakeWorker(queue, fleet)) as worker:
        done = await submitted(gateway)
        assert (await gateway.client.get(f"/v1/requests/{done}?wait=10")).json()["status"] == "completed"
        said = await why(gateway, done)
        assert said["ended"]["state"] == "completed" and said["ended"]["code"] is None and said["ended"]["worker"] == worker.id
        worker.error = {"code": "engine_error", "message": "no luck"}
        failed = await submitted(gateway)
        await gateway.client.get(f"/v1/requests/{failed}?wait=10")
        said = await why(gateway, failed)
        assert (said["ended"]["state"], said["ended"]["code"], said["ended"]["message"]) == ("failed", "engine_error", "no luck")


async def test_many_workers_are_counted(gateway: Running, workers: StandIns) -> None:
    for n in range(60):
        await workers.park(f"w-{n:02}", limit=64)
    said = await why(gateway, await submitted(gateway))
    assert len(said["workers"]) == 50 and said["others"] == {"too_small": 10}


async def test_a_large_fleet_is_read_in_part_and_counted_whole(gateway: Running, workers: StandIns) -> None:
    """Beyond some, a worker's last heartbeat tells of it; the one that keeps room is told surely."""
    for n in range(140):
        await workers.say(f"w-{n:03}", WorkerState.READY, limit_tokens=64, slots=4, weight=1.0)
    await workers.park("w-999", limit=200)
    await submitted(gateway)
    await workers.beat()
    said = await why(gateway, await submitted(gateway))
    assert (said["workers"][0]["id"], said["workers"][0]["code"]) == ("w-999", "no_room")
    # 128 are read as Redis has them: w-999 has room, and 127 that have not parked.
    assert said["others"] == {"no_pull": 127 - 49, "too_small": 13}


async def test_only_its_tenant_may_ask(redis: Redis, server_url: str, workers: StandIns) -> None:
    async with serving(settings_for(server_url, keys=("key-number-1", "key-number-2"))) as gateway:
        request = await submitted(gateway, {"Authorization": "Bearer key-number-1"})
        url = f"/v1/requests/{request}/explain"
        assert (await gateway.client.get(url)).status_code == 401
        assert (await gateway.client.get(url, headers={"Authorization": "Bearer key-number-2"})).status_code == 404
        assert (await gateway.client.get(url, headers={"Authorization": "Bearer key-number-1"})).status_code == 200
    assert links(request)["explain"] == url


async def test_a_record_of_an_older_release_is_explained(gateway: Running, workers: StandIns, redis: Redis) -> None:
    request = await submitted(gateway)
    key = f"{{s0}}:request:{request}"
    known = plain_fields(await redis.hgetall(key))  # type: ignore[misc]
    await redis.hset(
        key, mapping={name: known[name] for name in (*ASKED, *WHAT) if name not in ("prompt", "strategy")} | {"v": "1"}
    )  # type: ignore[misc]
    await redis.hdel(key, "asked", "what", "session", "meetings")  # type: ignore[misc]
    said = await why(gateway, request)
    assert said["meetings"] == [] and said["needs"]["cost_tokens"] == COST and said["needs"]["strategy"] is None
    await redis.hset(key, "meetings", "nonsense\n12 waits\n13 waits no_room w-1 4.5\n14 later words\n")
    assert [met["free_tokens"] for met in (await why(gateway, request))["meetings"]] == [4]


async def test_what_others_wrote_into_a_line_is_passed_over(gateway: Running, workers: StandIns, redis: Redis) -> None:
    await redis.xadd(f"{{s0}}:queue:{MODEL}:normal", {"id": "s0.unknown", "cost": "ten"})
    assert (await why(gateway, await submitted(gateway)))["ahead"] == {"requests": 1, "tokens": 0}


async def test_asking_changes_nothing(gateway: Running, workers: StandIns, redis: Redis) -> None:
    await redis.zadd("workers", {"w-stale": 1})
    await workers.park("w-1", limit=200)
    await submitted(gateway)
    await workers.beat()
    request = await submitted(gateway)

    async def stored() -> dict[bytes, bytes | None]:
        return {key: await redis.dump(key) async for key in redis.scan_iter() if not key.endswith((b":swept", b":amnesty"))}

    before = await stored()
    await why(gateway, request)
    assert await stored() == before


async def test_what_is_told_is_what_the_laws_go_by(redis: Redis, fleet: Fleet) -> None:
    """In any state: a request is granted at once if and only if some worker has no reason against it, and to one of these."""
    rng = random.Random(7)
    rules = QueueRules(worker_seen_ms=600_000)
    queue, explaining, codes = Queue(redis, rules), Explaining(redis, ShardKeys("s0")), Counter[Reason]()
    workers = StandIns(queue, fleet)
    for n in range(4):
        await workers.park(f"w-{n}", limit=(100, 300, 300, 400)[n], slots=(8, 1, 3, 8)[n])

    async def judged(record: RequestRecord) -> list[Judged]:
        around = await explaining.surroundings(record)
        assert len(around.workers) == 4
        needs = Needs(record.id, record.cost_tokens, record.crashes > 0, around.paused)
        return [judge(needs, w, rules.worker_seen_ms) for w in around.workers]

    wanted = {Reason.NO_ROOM, Reason.SLOTS, Reason.TOO_SMALL, Reason.KEPT_FOR_PINNED, Reason.PAUSED}
    template, step = None, -1
    while step < 200 or (step < 2_000 and not wanted <= set(codes)):  # chance is not only ours: salts of the scripts
        step += 1
        if workers.held and rng.random() < 0.45:
            await workers.finish(rng.choice(sorted(workers.held)))
        else:
            asked = m.InferenceRequest(m.new_id(), MODEL, m.InputKind.CHAT, m.Sampling(max_tokens=8))
            cost = rng.choice((16, 16, 32, 64, 160, 290, 290, 1_000))
            strategy = rng.choice(list(Strategy))
            free: set[str] = set()
            if template is not None:
                before = await judged(dataclasses.replace(template, id=asked.id, cost_tokens=cost))
                free = {each.worker.id for each in before if not each.reasons}
            at = past(redis, rules, 8 if cost > 100 else 0)  # the big ones have waited too long: room is kept for them
            await at.enqueue(m.NewRequest(asked.id, MODEL, m.encode(asked), asked.kind, cost, 3_600_000, strategy=strategy))
            record = await queue.record(asked.id)
            assert record is not None
            if template is None:
                template = record
            else:
                assert record.worker in free if free else record.worker == "", (step, free, record)
        if step % 40 == 10:
            await queue.pause(MODEL, True)
        if step % 40 == 20:
            await queue.pause(MODEL, False)
        await workers.beat()
        line = rng.sample(all_waiting := await queue.waiting(MODEL), min(3, len(all_waiting)))
        for request in line:
            waiting = await queue.record(request)
            assert waiting is not None and waiting.state is RequestState.QUEUED
            found = await judged(waiting)
            assert all(each.reasons for each in found), (step, waiting, found)
            codes.update(reason for each in found for reason in each.reasons)
        if len(all_waiting) > 5:
            await queue.cancel(rng.choice(all_waiting))
            await queue.cancel(rng.choice(all_waiting))
    assert wanted <= set(codes), codes
