"""Pools over HTTP: what is shown, explained and set; the number for other scalers; and that all of it agrees with the metrics."""

import re
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.scale_store import ScaleStore
from dispatch.scaling import Action, LaunchState, PoolOverride
from dispatch.states import WorkerState
from tests.gateway.helpers import MODEL, FakeWorker, Running
from tests.gateway.pools import Scaler, report
from tests.gateway.stand_ins import StandIns

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
COST = 112
SAID = ("Traceback (most recent call last):", "a prompt nobody may read", "torch.OutOfMemoryError: CUDA out of memory.")


@pytest.fixture
def scaler(redis: Redis) -> Scaler:
    return Scaler(ScaleStore(redis))


@pytest.fixture
async def workers(queue: Queue, fleet: Fleet) -> StandIns:
    await FakeWorker(queue, fleet).publish()
    return StandIns(queue, fleet)


async def got(gateway: Running, path: str) -> dict[str, Any]:
    answer = await gateway.client.get(path)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def explained(gateway: Running, pool: str = "p") -> tuple[dict[str, Any], dict[str, str]]:
    """The explanation, and its words by code."""
    document = await got(gateway, f"/v1/pools/{pool}/explain")
    return document, {line["code"]: line["words"] for line in document["why"]}


async def waiting(gateway: Running) -> dict[str, Any]:
    """What a new request is told."""
    answer = await gateway.client.post("/v1/requests", json=CHAT)
    assert answer.status_code == 202, answer.text
    return await got(gateway, f"/v1/requests/{answer.json()['id']}/explain")


# ---- pages


async def test_no_autoscaler_no_pools(gateway: Running) -> None:
    assert (await got(gateway, "/v1/pools"))["data"] == []
    answer = await gateway.client.get("/v1/pools/p")
    assert (
        answer.status_code == 404 and answer.json()["error"]["code"] == "pool_not_found" and "start one" in answer.json()["hint"]
    )


async def test_a_pool_is_shown_whole(gateway: Running, scaler: Scaler) -> None:
    await scaler.say(
        "p",
        Action.UP,
        1,
        3,
        raw=4.1,
        limits=("step_up<=2",),
        reason="waits",
        workers={"ready": 1, "starting": 2},
        cold_start_s=8.0,
        unplaceable="no GPU has 14 GiB free",
        reports=(report("l-1", LaunchState.CRASH_LOOP, exits=6, error="CUDA\nTraceback", last_words=SAID), report("l-2")),
    )
    await scaler.say("q", to=0)
    await scaler.store.override("p", PoolOverride(max=4))
    pools = (await got(gateway, "/v1/pools"))["data"]
    assert [p["pool"] for p in pools] == ["p", "q"] and pools == (await got(gateway, "/v1/scale"))["data"]
    p = pools[0]
    assert (p["model"], p["group"], p["launcher"], p["min"], p["max"]) == (MODEL, "main", "local", 0, 4)
    assert (p["wanted"], p["desired"], p["actual"], p["workers"]) == (4.1, 3, 1, {"ready": 1, "starting": 2})
    epoch = (await scaler.store.leader("main")).epoch
    assert p["leader"] == {"id": "as-1", "epoch": epoch, "leads": True} and p["unplaceable"] == "no GPU has 14 GiB free"
    assert p["override"] == {"min": None, "max": 4, "target_s": None, "paused": False} and p["paused"] is False
    assert p["crash_loops"] == 1 and [r["state"] for r in p["launches"]] == ["crash_loop", "starting"]
    assert p["launches"][0]["exits"] == 6 and p["launches"][0]["error"] == "CUDA"
    assert p["launches"][0]["diagnosis"] == "CUDA out of memory" and p["launches"][1]["diagnosis"] is None
    decided = p["decided"]
    assert (decided["action"], decided["from"], decided["to"], decided["limits"]) == ("up", 1, 3, ["step_up<=2"])
    assert p == await got(gateway, p["links"]["self"])


async def test_what_a_worker_wrote_reaches_nobody_who_only_has_a_key(gateway: Running, scaler: Scaler, workers: StandIns) -> None:
    crashed = report("l-1", LaunchState.CRASH_LOOP, exits=6, error="it ended", last_words=SAID)
    await scaler.say("p", to=1, reports=(crashed, replace(crashed, id="l-2", state=LaunchState.BACKOFF)))
    for path in ("/v1/pools", "/v1/pools/p", "/v1/pools/p/explain", "/v1/scale"):
        answer = await gateway.client.get(path)
        assert answer.status_code == 200 and "Traceback" not in answer.text and "nobody may read" not in answer.text
    told = str(await waiting(gateway))
    assert "crash-loops" in told and "Traceback" not in told and "nobody may read" not in told


async def test_an_etag_holds_until_something_changes(gateway: Running, scaler: Scaler) -> None:
    await scaler.say("p", to=1)
    first = await gateway.client.get("/v1/pools/p")
    again = await gateway.client.get("/v1/pools/p", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content
    await scaler.store.override("p", PoolOverride(paused=True))
    changed = await gateway.client.get("/v1/pools/p", headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200 and changed.json()["paused"] is True


async def test_a_leader_whose_lease_is_over_is_told(gateway: Running, scaler: Scaler) -> None:
    await scaler.say("p", to=1)
    assert await scaler.store.resign("main", "as-1")
    epoch = (await scaler.store.leader("main")).epoch
    assert (await got(gateway, "/v1/pools/p"))["leader"] == {"id": "as-1", "epoch": epoch, "leads": False}
    _, words = await explained(gateway)
    assert words["no_leader"].startswith(f"nobody leads group 'main' (as-1 did, epoch {epoch})")


async def test_history_pages_without_gap_or_repeat(gateway: Running, scaler: Scaler) -> None:
    for n in range(7):
        await scaler.say("p", Action.UP, n, n + 1)
        await scaler.say("q", to=n)
    seen, before = [], ""
    while True:
        page = await got(gateway, f"/v1/pools/p/history?limit=3{before and '&before=' + before}")
        seen += [d["to"] for d in page["data"]]
        assert all(d["pool"] == "p" for d in page["data"]) and len(page["data"]) <= 3
        if page["next_before"] is None:
            break
        before = page["next_before"]
    assert seen == [7, 6, 5, 4, 3, 2, 1]
    assert len((await got(gateway, "/v1/decisions?limit=200"))["data"]) == 14
    for bad, param in (("limit=0", "limit"), ("limit=x", "limit"), ("before=zz", "before")):
        answer = await gateway.client.get(f"/v1/pools/p/history?{bad}")
        assert answer.status_code == 400 and answer.json()["param"] == param
    assert (await gateway.client.get("/v1/pools/nobody/history")).status_code == 404


# ---- the number for other scalers


async def test_one_waiting_request_is_one(gateway: Running, workers: StandIns) -> None:
    assert (await got(gateway, f"/v1/scale/{MODEL}"))["value"] == 0
    await gateway.client.post("/v1/requests", json=CHAT)
    assert (await got(gateway, f"/v1/scale/{MODEL}"))["value"] == 1
    await workers.park("w-1", limit=COST)
    await workers.beat()
    await gateway.client.post("/v1/requests", json=CHAT)
    said = await got(gateway, f"/v1/scale/{MODEL}")
    assert (said["value"], said["waiting"], said["running"]) == (2, 1, 1)
    await gateway.client.post(f"/v1/queues/{MODEL}/pause")
    assert (await got(gateway, f"/v1/scale/{MODEL}"))["value"] == 1, "what a paused queue holds back wakes nobody"


async def test_names_with_slashes_and_names_nobody_knows(gateway: Running, queue: Queue, fleet: Fleet, scaler: Scaler) -> None:
    await FakeWorker(queue, fleet, model="Qwen/Qwen3-0.6B").publish()
    assert (await got(gateway, "/v1/scale/Qwen/Qwen3-0.6B"))["model"] == "Qwen/Qwen3-0.6B"
    answer = await gateway.client.get("/v1/scale/nobody/history")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found" and answer.json()["param"] == "model"
    await scaler.say("p", model="org/never-ran")
    assert (await got(gateway, "/v1/scale/org/never-ran"))["value"] == 0, "a pool's model is known before any worker ran"


async def test_a_model_whose_first_worker_is_awaited_is_asked_for_again(gateway: Running, scaler: Scaler) -> None:
    body = {**CHAT, "model": "org/never-ran"}
    assert (await gateway.client.post("/v1/requests", json=body)).status_code == 404
    await scaler.say("p", model="org/never-ran", bounds=(0, 0))
    assert (await gateway.client.post("/v1/requests", json=body)).status_code == 404, "a pool that may have none brings none"
    await scaler.say("p", model="org/never-ran", bounds=(0, 2))
    for path in ("/v1/requests", "/v1/chat/completions"):
        answer = await gateway.client.post(path, json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.json()["error"]["code"] == "model_loading"


# ---- what people set


async def patched(gateway: Running, body: object, pool: str = "p") -> Any:
    return await gateway.client.patch(f"/v1/pools/{pool}", json=body)


async def test_what_is_set_stands_field_by_field(gateway: Running, scaler: Scaler) -> None:
    await scaler.say("p", to=1, bounds=(0, 4))
    assert (await patched(gateway, {"max": 6, "target_s": 2})).json()["override"]["max"] == 6
    assert (await patched(gateway, {"min": 5})).status_code == 200, "5 is below the new most, whatever the last tick knew"
    assert (await patched(gateway, {"paused": True})).json()["paused"] is True
    assert await scaler.store.overrides() == {"p": PoolOverride(5, 6, 2.0, True)}
    await patched(gateway, {"target_s": None})
    assert await scaler.store.overrides() == {"p": PoolOverride(5, 6, None, True)}
    await patched(gateway, {"reset": True})
    assert await scaler.store.overrides() == {"p": PoolOverride(paused=True)}
    assert (await patched(gateway, {"paused": False})).json()["override"] is None
    assert await scaler.store.overrides() == {}


async def test_bounds_that_an_override_hides_are_not_guessed(gateway: Running, scaler: Scaler) -> None:
    await scaler.store.override("p", PoolOverride(max=2))
    await scaler.say("p", to=1, bounds=(0, 2))
    assert (await patched(gateway, {"min": 5})).status_code == 400
    assert (await patched(gateway, {"min": 5, "max": None})).status_code == 200, "what the settings say is not known here"
    assert await scaler.store.overrides() == {"p": PoolOverride(min=5)}


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"min": 5}, "min", "would be 5, and the most 4"),
        ({"max": 0}, "max", "would be 1, and the most 0"),
        ({"min": 3, "max": 2}, "min", "would be 3, and the most 2"),
        ({"min": -1}, "min", ">= 0"),
        ({"max": 1.5}, "max", "int"),
        ({"target_s": 0}, "target_s", "> 0"),
        ({"paused": None}, "paused", "bool"),
        ({"mni": 1}, "mni", "unknown field"),
        ({}, "body", "nothing to set"),
    ],
    ids=str,
)
async def test_what_cannot_be_names_the_field(
    gateway: Running, scaler: Scaler, body: dict[str, Any], param: str, part: str
) -> None:
    await scaler.say("p", to=1, bounds=(1, 4))
    answer = await patched(gateway, body)
    assert answer.status_code == 400, answer.text
    said = answer.json()
    assert (said["error"]["code"], said["param"]) == ("invalid_request", param) and part in said["detail"] and said["hint"]
    assert await scaler.store.overrides() == {}, "nothing of it was set"


async def test_a_pool_nobody_told_of_cannot_be_set(gateway: Running, scaler: Scaler) -> None:
    await scaler.say("p")
    answer = await patched(gateway, {"max": 1}, "other")
    assert answer.status_code == 404 and "Pools here: p." in answer.json()["hint"]
    assert await scaler.store.overrides() == {}


# ---- explanations


async def test_a_pool_explains_itself(gateway: Running, scaler: Scaler, workers: StandIns) -> None:
    await scaler.say("p", Action.UP, 1, 3, ago_s=6, reason="oldest wait 14.2 s > target 5 s")
    await workers.say("w-2", WorkerState.LOADING, pool="p", launch="l-2", progress="weights 62 %")
    await scaler.say(
        "p",
        to=3,
        raw=4.1,
        log=False,
        reason="starting",
        limits=("max 3",),
        inputs={"waiting": 41, "oldest_wait_s": 14.2},
        workers={"ready": 1, "loading": 1, "failed": 1},
        cold_start_s=30.0,
        unplaceable="no GPU has 14 GiB free",
        reports=(
            report("l-1", LaunchState.RUNNING, ago_s=100),
            report("l-2", LaunchState.RUNNING, ago_s=8, host="gpu-b"),
            report("l-3", LaunchState.CRASH_LOOP, host="gpu-a", exits=6, error="CUDA error", last_words=SAID),
        ),
    )
    await workers.say("w-1", WorkerState.READY, pool="p", launch="l-1")
    await scaler.store.override("p", PoolOverride(max=3))
    said, words = await explained(gateway)
    assert "as-1 held 3" in words["decision"] and "waiting 41, oldest_wait_s 14.2" in words["decision"]
    assert re.search(r"went up 1 -> 3 6\.\d s ago: oldest wait 14\.2 s > target 5 s", words["change"])
    assert words["limited"] == "the policy asked for 4.1, 3 there should be; held by max 3"
    assert words["override"] == "set by an operator: max 3"
    assert "no GPU has 14 GiB free" in words["unplaceable"]
    crashed = words["crash_loop"]
    assert "l-3 on gpu-a crash-loops: it ended 6 times" in crashed and "CUDA error" in crashed and "CUDA out of memory" in crashed
    (starting,) = said["starting"]
    assert (starting["launch"], starting["state"], starting["progress"]) == ("l-2", "loading", "weights 62 %")
    assert 20 < starting["left_s"] <= 22 and "ready in about 2" in words["starting"]
    assert said["summary"].startswith("p: 1 ready, 1 loading, 1 failed -> 3 (of 0 to 4), 1 starting (about 2")


async def test_pause_dry_run_backoff_and_an_overdue_start_are_told(gateway: Running, scaler: Scaler) -> None:
    await scaler.say(
        "p", to=1, dry_run=True, cold_start_s=2.0, reports=(report("l-1", ago_s=9), report("l-2", LaunchState.BACKOFF, exits=2))
    )
    await scaler.store.override("p", PoolOverride(paused=True))
    _, words = await explained(gateway)
    assert "penstock scale resume p" in words["paused"] and "nothing is started" in words["dry_run"]
    assert "longer than the usual 2.0 s" in words["starting"] and "ended 2 times" in words["backoff"]
    assert "override" not in words and "limited" not in words


async def test_a_request_is_told_of_the_worker_that_comes(gateway: Running, scaler: Scaler, workers: StandIns) -> None:
    before = await waiting(gateway)
    assert before["impossible"]["code"] == "no_workers" and before["autoscaler"] == []
    await scaler.say("p", Action.UP, 0, 1, ago_s=2.1)
    await scaler.say("p", to=1, log=False, cold_start_s=7.0, workers={"starting": 1}, reports=(report("l-1", ago_s=2),))
    said = await waiting(gateway)
    assert said["impossible"] is None and "cannot start" not in said["summary"]
    assert re.search(r"autoscaler \(p\): 0 -> 1 decided 2\.\d s ago, 1 starting \(about [45]\.\d s left\)", said["summary"])
    assert 3.5 < said["expected_start"]["seconds"] <= 5.0 and "at the earliest" in said["expected_start"]["basis"]
    (scaled,) = said["autoscaler"]
    assert (scaled["action"], scaled["from"], scaled["to"], scaled["may_start"]) == ("up", 0, 1, True)


async def test_a_request_is_told_of_a_crash_loop(gateway: Running, scaler: Scaler, workers: StandIns) -> None:
    await scaler.say("p", to=1, reports=(report("l-1", LaunchState.CRASH_LOOP, exits=6, error="CUDA error"),))
    said = await waiting(gateway)
    assert said["expected_start"]["seconds"] is None and "l-1 crash-loops" in said["expected_start"]["basis"]
    assert "crash-loops: it ended 6 times and is not started again: CUDA error" in said["summary"]
    assert said["autoscaler"][0]["crash_loops"] == 1


@pytest.mark.parametrize("why", ["most is none", "paused", "dry run", "nobody decides", "card too small", "another model"])
async def test_where_no_worker_can_come_it_is_still_impossible(
    gateway: Running, scaler: Scaler, workers: StandIns, why: str
) -> None:
    changes: dict[str, Any] = {
        "most is none": {"bounds": (0, 0)},
        "dry run": {"dry_run": True},
        "another model": {"model": "other"},
    }
    await scaler.say("p", to=1, ago_s=60 if why == "nobody decides" else 0, **changes.get(why, {}))
    answer = await gateway.client.post("/v1/requests", json=CHAT)
    if why == "paused":
        await scaler.store.override("p", PoolOverride(paused=True))
    if why == "nobody decides":
        await scaler.store.resign("main", "as-1")
    if why == "card too small":
        await FakeWorker(workers.queue, workers.fleet, max_cost=COST - 1).publish()
    said = await got(gateway, f"/v1/requests/{answer.json()['id']}/explain")
    assert said["impossible"] and said["impossible"]["code"] == "no_workers" and "cannot start" in said["summary"]


async def test_too_small_workers_are_final_only_where_no_other_may_come(
    gateway: Running, scaler: Scaler, workers: StandIns
) -> None:
    await workers.park("w-1", limit=64)
    await scaler.say("p", to=1, bounds=(0, 1), workers={"ready": 1})
    assert (await waiting(gateway))["impossible"]["code"] == "too_large"
    await scaler.say("p", to=1, bounds=(0, 2), workers={"ready": 1})
    said = await waiting(gateway)
    assert said["impossible"] is None and "too_small" in said["expected_start"]["basis"]


# ---- metrics


async def test_the_metrics_are_what_the_pages_say(gateway: Running, scaler: Scaler) -> None:
    await scaler.say("p", Action.UP, 1, 3, raw=4.1, workers={"ready": 2, "starting": 1}, cold_start_s=7.5)
    await scaler.say("p", to=3, log=False, raw=2.5, workers={"ready": 3}, cold_start_s=7.5)
    await scaler.say("q", Action.BLOCKED, 0, 0, raw=1.0, bounds=(0, 1), workers={"failed": 1})
    text = (await gateway.client.get("/metrics")).text
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = (label for _, label in sorted(sample.labels.items()))
            if family.name.startswith("penstock_autoscaler"):
                found[(sample.name.removeprefix("penstock_autoscaler_"), *labels)] = sample.value
    pools = (await got(gateway, "/v1/pools"))["data"]
    expected: dict[tuple[str, ...], float] = {}
    for pool in pools:
        name = pool["pool"]
        expected |= {
            ("desired_workers", name): pool["wanted"],
            ("bounded_workers", name): pool["desired"],
            ("actual_workers", name): pool["actual"],
            ("last_decision_timestamp_seconds", name): pool["decided"]["at_ms"] / 1000,
            **{("pool_workers", name, state): count for state, count in pool["workers"].items()},
        }
        if pool["cold_start_s"] is not None:
            expected["cold_start_seconds", name] = pool["cold_start_s"]
    expected |= {("leader", "main"): pools[0]["leader"]["leads"], ("leader_epoch", "main"): pools[0]["leader"]["epoch"]}
    # Labels in the order of their names: action, pool.
    expected |= {("decisions_total", "up", "p"): 1, ("decisions_total", "hold", "p"): 1, ("decisions_total", "blocked", "q"): 1}
    assert found == expected
    assert (found["desired_workers", "p"], found["actual_workers", "p"], found["leader", "main"]) == (2.5, 3, 1)


async def test_the_metrics_tell_of_a_lost_leader(gateway: Running, scaler: Scaler) -> None:
    assert "penstock_autoscaler_leader{" not in (await gateway.client.get("/metrics")).text
    await scaler.say("p")
    await scaler.store.resign("main", "as-1")
    assert 'penstock_autoscaler_leader{group="main"} 0.0' in (await gateway.client.get("/metrics")).text
