"""`penstock agent` as a process, with real sim workers: rung, killed, restarted, ended for good."""

import contextlib
import os
import signal
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis as Blocking
from redis.asyncio import Redis
from rq import Queue as RqQueue
from rq.serializers import JSONSerializer

from autoscaler.jobs.line import JobLine, host_queue
from autoscaler.jobs.payload import key_of
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from dispatch.states import RequestState, WorkerState
from tests.autoscaler.agents import AgentProcess, Leader, launch, pids_of, until
from tests.autoscaler.test_jobs import data_of
from tests.servers import binaries, running
from tests.worker.conftest import Client

HOST = f"gpu-p{os.getpid()}"  # tests of other processes may run beside these
SECRET = "a secret of the bell"
WEBHOOK_SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(next(iter(binaries()))) as server:
        yield server.url


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    client = connect(url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def leader(redis: Redis) -> Leader:
    return Leader(redis)


@pytest.fixture
def fleet(redis: Redis) -> Fleet:
    return Fleet(redis)


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().decode()


def children_of(parent: int, module: str) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not path.name.isdigit() or module not in (path / "cmdline").read_text().split("\0"):
                continue
            if (path / "stat").read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(path.name))
    return found


async def ready(fleet: Fleet, *names: str) -> dict[str, Any]:
    """The heartbeats of these launches, once all are ready."""

    async def found() -> Any:
        beats = {beat.launch: beat for beat in await fleet.workers() if beat.state is WorkerState.READY}
        return beats if beats.keys() == set(names) else None

    found_beats: dict[str, Any] = await until(found, f"{names} to be ready")
    return found_beats


async def test_workers_outlive_a_killed_agent_and_the_next_one_has_them(
    redis: Redis, url: str, leader: Leader, fleet: Fleet, tmp_path: Path
) -> None:
    await leader.order(launch("l-1", HOST), launch("l-2", HOST))
    agent = AgentProcess(url, tmp_path, HOST)
    try:
        before = await ready(fleet, "l-1", "l-2")
        assert {beat.pool for beat in before.values()} == {"p"}
        pids = pids_of(HOST)
        agent.kill()
        client = Client(Queue(redis, QueueRules()))
        assert await client.ended(await client.ask()) is RequestState.COMPLETED, "they work on"
        os.kill(pids["l-2"], signal.SIGKILL)  # while nobody looks
        await until(lambda: pids_of(HOST) == {"l-1": pids["l-1"]}, "its end")
        agent.again()
        await until(lambda: len(pids_of(HOST)) == 2, "the one that died to be started again")
        assert pids_of(HOST)["l-1"] == pids["l-1"], "the other was taken over, not started again"
        after = await ready(fleet, "l-1", "l-2")
        assert after["l-1"].id == before["l-1"].id

        # SIGTERM ends the agent, not what runs.
        pids = pids_of(HOST)
        assert agent.terminate() == 0
        assert pids_of(HOST) == pids
        # And this ends them for good, each after its drain.
        assert agent.stop_workers() == 0
        assert pids_of(HOST) == {}
        assert await fleet.workers() == []
        assert await leader.host(HOST) is None
    finally:
        agent.clean_up()


async def test_what_a_killed_worker_held_moves_on_at_once(
    redis: Redis, url: str, leader: Leader, fleet: Fleet, tmp_path: Path
) -> None:
    await leader.order(launch("l-1", HOST, sim_speed="0.3"))
    agent = AgentProcess(url, tmp_path, HOST)
    try:
        beats = await ready(fleet, "l-1")
        queue = Queue(redis, QueueRules())
        client = Client(queue)
        request = await client.ask(max_tokens=24)
        await client.wrote(request)
        killed_at = time.monotonic()
        os.kill(beats["l-1"].pid, signal.SIGKILL)

        async def moved_on() -> bool:
            return await client.state(request) is not RequestState.RUNNING

        await until(moved_on, "its request to leave the dead worker")
        assert time.monotonic() - killed_at < 3, "its lease would last for 10 s"
        assert await client.ended(request) is RequestState.COMPLETED
        record = await queue.record(request)
        assert record is not None
        assert (record.attempt, record.crashes) == (2, 0), "SIGKILL comes from outside: nothing is suspect"
        text, *_ = await client.answer(request)
        assert text
    finally:
        agent.clean_up()


async def test_the_bell_is_heard_at_once_and_a_stale_one_fails_where_rq_shows_it(
    redis: Redis, url: str, leader: Leader, tmp_path: Path
) -> None:
    await leader.next_epoch()
    rq_url = f"{url}?db=4"
    line = JobLine(rq_url, key_of(SECRET))
    agent = AgentProcess(
        url, tmp_path, HOST, AGENT__POLL_S="3600", AGENT__SECRET=SECRET, AGENT__RQ_URL=rq_url, WEBHOOK__SECRET=WEBHOOK_SECRET
    )
    try:
        await until(lambda: leader.host(HOST), "its first report")
        first = await leader.order()
        await leader.next_epoch()
        epoch = await leader.order(launch("l-1", HOST))
        assert epoch == first + 1
        assert pids_of(HOST) == {}
        await line.ring(HOST, epoch)
        rung_at = time.monotonic()
        pids = await until(lambda: pids_of(HOST), "the worker")
        assert time.monotonic() - rung_at < 3

        with Blocking.from_url(rq_url) as raw:
            queue = RqQueue(host_queue(HOST), connection=raw, serializer=JSONSerializer)
            stale = await line.ring(HOST, 1)
            raw.hset(
                "rq:job:harm", mapping={"data": zlib.compress(data_of("os.system", f"touch {tmp_path}/x")), "status": "queued"}
            )
            raw.lpush(f"rq:queue:{host_queue(HOST)}", "harm")
            await until(lambda: {stale, "harm"} <= set(queue.failed_job_registry.get_job_ids()), "both to fail")
        assert not (tmp_path / "x").exists()
        assert agent.process.poll() is None
        assert pids_of(HOST) == pids
        assert SECRET not in agent.said()
        for pid in pids.values():
            assert SECRET not in environment_of(pid), "workers need no secret of the bell"
        await leader.order()
        await line.ring(HOST, epoch)
        await until(lambda: not pids_of(HOST), "it still hears")

        webhooks = await until(lambda: children_of(agent.process.pid, "autoscaler.webhooks"), "the process of webhooks")
        agent.kill()
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in webhooks), "it died with its agent")
    finally:
        agent.clean_up()
        await line.close()
