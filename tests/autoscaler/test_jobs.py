"""The ground on RQ: what may be rung, and what a job that means harm comes to. Real servers, RQ's own tools beside ours."""

import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue, Worker
from rq.command import send_shutdown_command
from rq.job import Job
from rq.serializers import JSONSerializer

from autoscaler.jobs.guarded import Desk
from autoscaler.jobs.line import JobLine, host_queue
from autoscaler.jobs.payload import JobRefused, Op, Payload, key_of, seal, unseal
from autoscaler.jobs.runner import Runner
from tests.servers import binaries, running

KEY = key_of("a secret for tests")
HOST = "gpu-1"
PATIENCE_S = 15.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of RQ's own, of one kind: it is RQ that speaks to it."""
    with running(next(iter(binaries()))) as server:
        yield server.url


@pytest.fixture
def raw(url: str) -> Iterator[Redis]:
    with Redis.from_url(url) as client:
        yield client


class Did:
    """What was done at the desk."""

    def __init__(self) -> None:
        self.payloads: list[Payload] = []
        self.least_epoch = 0

    def reconcile(self, payload: Payload) -> dict[str, Any]:
        if payload.epoch < self.least_epoch:
            raise JobRefused("It speaks of orders that are older than those carried out.")
        self.payloads.append(payload)
        return {"epoch": payload.epoch}


@pytest.fixture(scope="module")
def at_work(url: str) -> Iterator[Did]:
    """One runner for all that follows: whatever is thrown at it, it has to be there for the next test."""
    did = Did()
    runner = Runner(url, [host_queue(HOST)], Desk(HOST, KEY, {Op.RECONCILE: did.reconcile}))
    runner.start()
    yield did
    runner.stop()


@pytest.fixture
def did(at_work: Did) -> Did:
    at_work.payloads.clear()
    at_work.least_epoch = 0
    return at_work


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)
    return found


def put_raw(raw: Redis, job_id: str, data: bytes, *, host: str = HOST, **fields: Any) -> None:
    """A job as any client of Redis can write one."""
    stored: dict[Any, Any] = {"data": data, "status": "queued", "origin": "elsewhere", **fields}
    raw.hset(f"rq:job:{job_id}", mapping=stored)
    raw.sadd("rq:queues", f"rq:queue:{host_queue(host)}")
    raw.lpush(f"rq:queue:{host_queue(host)}", job_id)


PICKLE = b"cposix\nsystem\n(S'touch %s'\ntR."
"""What pickle, version 0, writes for a call of os.system."""


def data_of(name: str, *args: Any) -> bytes:
    return json.dumps([name, None, list(args), {}]).encode()


def sealed(raw: Redis, *, key: bytes = KEY, epoch: int = 1, host: str = HOST, ttl_ms: int = 10_000) -> str:
    seconds, micros = raw.time()
    return seal(Payload(Op.RECONCILE, host, epoch, seconds * 1000 + micros // 1000 + ttl_ms), key)


def fetched(raw: Redis, job_id: str) -> Job:
    return Job.fetch(job_id, connection=raw, serializer=JSONSerializer)


def why_it_failed(raw: Redis, job_id: str, *, host: str = HOST) -> str:
    """What RQ's own tools say of a failed job."""
    queue = Queue(host_queue(host), connection=raw, serializer=JSONSerializer)
    until(lambda: job_id in queue.failed_job_registry.get_job_ids())
    job = fetched(raw, job_id)
    assert job.is_failed
    result = job.latest_result()
    assert result is not None and result.exc_string is not None
    return result.exc_string


async def is_at_work(url: str, did: Did) -> None:
    """A good job still gets done."""
    line, before = JobLine(url, KEY), len(did.payloads)
    await line.ring(HOST, 99)
    until(lambda: len(did.payloads) > before)
    await line.close()


async def test_a_ring_arrives_and_rqs_own_tools_show_its_result(url: str, raw: Redis, did: Did) -> None:
    line = JobLine(url, KEY)
    job_id = await line.ring(HOST, 7)
    assert job_id is not None
    until(lambda: fetched(raw, job_id).is_finished)
    job = fetched(raw, job_id)
    assert job.return_value() == {"epoch": 7}
    assert [p.epoch for p in did.payloads] == [7]
    assert job.description == "reconcile", "RQ's own description would tell the arguments"
    queue = Queue(host_queue(HOST), connection=raw, serializer=JSONSerializer)
    assert job_id in queue.finished_job_registry.get_job_ids()
    workers = Worker.all(queue=queue, serializer=JSONSerializer)
    assert [w.queue_names() for w in workers] == [[host_queue(HOST)]]
    await line.close()


def _harm(path: Path) -> dict[str, bytes]:
    by_pickle = PICKLE % str(path).encode()
    return {
        "os.system": zlib.compress(data_of("os.system", f"touch {path}")),
        "os.system, not packed": data_of("os.system", f"touch {path}"),
        "pickle": zlib.compress(by_pickle),
        "pickle, not packed": by_pickle,
        "method of an object": zlib.compress(json.dumps(["system", "os", [f"touch {path}"], {}]).encode()),
        "deep JSON": zlib.compress(b"[" * 60_000),
        "large": os.urandom(1024 * 1024),
        "no list": zlib.compress(b'{"a": 1}'),
        "nothing": b"",
    }


@pytest.mark.parametrize("kind", list(_harm(Path())))
async def test_a_job_that_means_harm_fails_and_the_agent_lives(url: str, raw: Redis, did: Did, kind: str, tmp_path: Path) -> None:
    was_run = tmp_path / "was-run"
    name = kind.replace(" ", "_").replace(",", "").replace(".", "_")
    put_raw(raw, name, _harm(was_run)[kind])
    assert "JobRefused" in why_it_failed(raw, name)
    assert not was_run.exists()
    assert did.payloads == []
    await is_at_work(url, did)


def peak_kib() -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)


def test_a_bomb_takes_no_memory(raw: Redis, did: Did) -> None:
    bomb, large = zlib.compress(bytes(40 * 1024 * 1024), 9), zlib.compress(bytes(100 * 1024 * 1024), 9)
    assert len(bomb) < 64 * 1024 < len(large)
    # The making of one took memory, too: only what comes on top of it tells.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kib()
    put_raw(raw, "bomb", bomb)
    put_raw(raw, "large-bomb", large)
    assert "too large unpacked" in why_it_failed(raw, "bomb")
    assert "too large" in why_it_failed(raw, "large-bomb")
    assert peak_kib() - before < 20 * 1024


async def test_what_is_stored_beside_the_payload_is_not_believed(url: str, raw: Redis, did: Did, tmp_path: Path) -> None:
    """Callbacks are imported and called, dependents enqueued, repeats and retries obeyed: by RQ, not here."""
    trap = PICKLE % b"/nowhere"
    put_raw(
        raw,
        "laden",
        zlib.compress(data_of("reconcile", sealed(raw))),
        success_callback_name="os.abort",
        failure_callback_name="os.abort",
        stopped_callback_name="os.abort",
        meta=trap,
        result=trap,
        repeats_left=5,
        repeat_intervals="[0]",
        retries_left=5,
        webhooks=json.dumps([{"url": "http://127.0.0.1:1/", "job_status": "finished"}]),
        dependency_ids='["other"]',
        timeout="nonsense",
        result_ttl=-1,
        exc_info=zlib.compress(bytes(1024 * 1024)),
    )
    raw.sadd("rq:job:laden:dependents", "other")
    put_raw(raw, "other", zlib.compress(data_of("os.abort")), status="deferred")
    raw.lrem(f"rq:queue:{host_queue(HOST)}", 0, "other")
    until(lambda: fetched_status(raw, "laden") == b"finished")
    assert len(did.payloads) == 1
    assert fetched_status(raw, "other") == b"deferred"
    await is_at_work(url, did)
    assert len(did.payloads) == 2, "it was not repeated"
    assert 0 < int(raw.ttl("rq:job:laden")) <= 600


def is_finished(raw: Redis, job_id: str) -> bool:
    return bool(fetched_status(raw, job_id) == b"finished")


def fetched_status(raw: Redis, job_id: str) -> Any:
    return raw.hget(f"rq:job:{job_id}", "status")


async def test_only_the_signed_word_counts(url: str, raw: Redis, did: Did) -> None:
    did.least_epoch = 5
    good = sealed(raw, epoch=9)
    mark, _, said = good.partition(".")
    cases = {
        "forged": (sealed(raw, key=key_of("another")), "signature"),
        "changed": (f"{mark}.{said.replace('9', '8', 1)}", "signature"),
        "no-mark": (said, "signature"),
        "expired": (sealed(raw, ttl_ms=-1), "expired"),
        "elsewhere": (sealed(raw, host="gpu-2"), "another host"),
        "stale": (sealed(raw, epoch=4), "older"),
        "no-text": (17, "one signed text"),
    }
    for name, (text, _) in cases.items():
        put_raw(raw, name, zlib.compress(data_of("reconcile", text)))
    for name, (_, why) in cases.items():
        found = why_it_failed(raw, name)
        assert why in found, name
        assert good[:64] not in found
    put_raw(raw, "other-op", zlib.compress(data_of("webhook", good)))
    assert "Only reconcile may be asked for" in why_it_failed(raw, "other-op")
    assert did.payloads == []
    await is_at_work(url, did)


async def test_one_that_was_taken_again_does_no_harm(url: str, raw: Redis, did: Did) -> None:
    """Doubled and replayed while it is valid: the agent looks once more at its orders, and that is all a ring can cause."""
    text = sealed(raw, epoch=3, ttl_ms=3_600_000)
    for name in ("first", "again"):
        put_raw(raw, name, zlib.compress(data_of("reconcile", text)))
        until(partial(is_finished, raw, name))
    assert [p.epoch for p in did.payloads] == [3, 3]


async def test_without_a_secret_nothing_is_taken(url: str, raw: Redis) -> None:
    did = Did()
    deaf = Runner(url, [host_queue("deaf")], Desk("deaf", None, {Op.RECONCILE: did.reconcile}))
    deaf.start()
    put_raw(raw, "well-signed", zlib.compress(data_of("reconcile", sealed(raw, host="deaf"))), host="deaf")
    assert "no agent.secret" in why_it_failed(raw, "well-signed", host="deaf")
    assert did.payloads == []
    deaf.stop(0)


async def test_what_cannot_be_read_is_passed_over(url: str, raw: Redis, did: Did) -> None:
    raw.set("rq:job:a-string", "no hash")
    raw.lpush(f"rq:queue:{host_queue(HOST)}", "a-string", "no such job", "a b!c", "gone", b"\xff\xfe")
    await is_at_work(url, did)


async def test_commands_of_other_clients_do_not_stop_it(url: str, raw: Redis, did: Did) -> None:
    worker = until(lambda: Worker.all(queue=Queue(host_queue(HOST), connection=raw), serializer=JSONSerializer))[0]
    assert raw.pubsub_numsub(worker.pubsub_channel_name)[0][1] == 0
    send_shutdown_command(raw, worker.name)
    await is_at_work(url, did)


async def test_nobody_is_rung_without_end(url: str, raw: Redis) -> None:
    line = JobLine(url, KEY)
    rung = [await line.ring("nobody", n) for n in range(20)]
    assert len([job for job in rung if job]) == 8
    assert await line.waiting(host_queue("nobody")) == 8
    await line.close()


async def test_it_ends_soon_and_signs_off(url: str, raw: Redis) -> None:
    queue = host_queue("short")
    found = Runner(url, [queue], Desk("short", KEY, {}))
    found.start()
    seen = Queue(queue, connection=raw)
    until(lambda: Worker.all(queue=seen, serializer=JSONSerializer))
    before = time.monotonic()
    found.stop()
    assert time.monotonic() - before < 4
    assert not [t for t in threading.enumerate() if queue in t.name]
    assert Worker.all(queue=seen, serializer=JSONSerializer) == []


def test_what_is_signed_is_read_back_and_nothing_else() -> None:
    payload = Payload(Op.WEBHOOK, "", 0, 1_000, {"request": "s0.1"})
    text = seal(payload, KEY)
    assert unseal(text, KEY, op="webhook", host="any", now_ms=999) == payload
    wrongs: list[dict[str, Any]] = [{"op": "reconcile"}, {"now_ms": 1_000}, {"key": key_of("x")}, {"key": None}]
    wrongs += [{"text": wrong} for wrong in ("", ".", "ü.ä", f"{text}x", 17)]
    for wrong in wrongs:
        asked: dict[str, Any] = {"text": text, "key": KEY, "op": "webhook", "host": "any", "now_ms": 999, **wrong}
        with pytest.raises(JobRefused):
            unseal(**asked)
