"""The agent against orders, crashes, strangers and its own death. Processes and server are real; most workers only sleep."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from autoscaler.agent import telling
from autoscaler.agent.agent import Agent
from autoscaler.agent.devices import Devices
from autoscaler.agent.processes import Identity, identity_of
from autoscaler.agent.state import Kept, State, StateFile
from autoscaler.launchers import base
from autoscaler.launchers.aftermath import Aftermath
from autoscaler.logs import bound
from dispatch.configuration import load_settings
from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.messages import encode
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from dispatch.scale_store import ScaleStore
from dispatch.scaling import Launch, LaunchState
from dispatch.tasks import cancelled
from tests.autoscaler.agents import Leader, end_workers, launch, members_of, pids_of, until
from tests.servers import binaries, running

HOST = f"gpu-a{os.getpid()}"  # tests of other processes may run beside these
REFUSED = "refuse orders of an older epoch"
KEPT = "keep what new orders do not name"
SLEEP = ["/bin/sleep", "600"]
STUBBORN = ["/bin/bash", "-c", "trap '' TERM; sleep 601 & while true; do sleep 0.1; done"]


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


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    end_workers(HOST)


@asynccontextmanager
async def agent_here(
    redis: Redis,
    url: str,
    folder: Path,
    command: list[str] = SLEEP,
    *,
    half_open_s: float = 60.0,
    rewound_s: float = 60.0,
    **flags: Any,
) -> AsyncIterator[Agent]:
    """An agent in this process; at the end it goes as if it had been ended: its workers stay."""
    asked = {
        "redis.url": url,
        "agent.poll_s": 0.1,
        "agent.report_s": 0.1,
        "agent.max_workers": 8,
        "worker.drain_timeout_s": 0.2,
        "autoscaler.kill_after_s": 0.2,
        **{name.replace("__", "."): value for name, value in flags.items()},
    }
    settings = load_settings(asked, environment={}, folder=folder)
    file = StateFile(folder / "state", HOST)
    devices = Devices(settings.agent.fake_gpus, 1.0)
    after = Aftermath(Queue(redis, QueueRules()), Fleet(redis))
    agent = Agent(
        settings, HOST, ScaleStore(redis), after, file, devices, command=command, half_open_s=half_open_s, rewound_s=rewound_s
    )
    tending = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        await cancelled(tending)
        file.close()


async def test_what_is_ordered_runs_and_nothing_else(redis: Redis, url: str, leader: Leader, tmp_path: Path) -> None:
    async with agent_here(redis, url, tmp_path):
        await leader.order(launch("l-1", HOST), launch("l-2", HOST), launch("l-3", "gpu-b"), launch("l-4", ""))
        before = await until(lambda: len(pids_of(HOST)) == 2 and pids_of(HOST), "two workers")
        assert before.keys() == {"l-1", "l-2"}
        for pid in before.values():
            assert os.getsid(pid) == pid, "in a session of its own"
        epoch = await leader.order(launch("l-2", HOST), launch("l-5", HOST))
        await until(lambda: pids_of(HOST).keys() == {"l-2", "l-5"}, "the change")
        assert pids_of(HOST)["l-2"] == before["l-2"]

        async def is_told() -> bool:
            said = await leader.host(HOST)
            return said is not None and {r.id: r.state for r in said.launches} == dict.fromkeys(
                ("l-2", "l-5"), LaunchState.RUNNING
            )

        await until(is_told, "the report")
        said = await leader.host(HOST)
        assert said is not None
        assert (said.epoch, said.most_workers) == (epoch, 8)
        await leader.order()
        await until(lambda: not pids_of(HOST), "the end of all")


async def test_a_worker_that_ignores_its_end_is_killed_with_its_session(
    redis: Redis, url: str, leader: Leader, tmp_path: Path
) -> None:
    async with agent_here(redis, url, tmp_path, STUBBORN):
        await leader.order(launch("l-1", HOST))
        pid = (await until(lambda: pids_of(HOST), "the worker"))["l-1"]
        await until(lambda: len(members_of(pid)) >= 2, "its child")
        await leader.order()
        await until(lambda: not members_of(pid), "the end of all of it")


async def test_orders_of_an_older_epoch_are_refused(
    redis: Redis, url: str, leader: Leader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = await leader.order()
    await leader.next_epoch()
    async with agent_here(redis, url, tmp_path) as agent:
        assert await leader.order(launch("l-1", HOST)) == first + 1
        pids = await until(lambda: pids_of(HOST), "the worker")
        # As a Redis that went back in time, or a writer around the fence, would have it.
        stale = await leader.store.orders("main")
        await redis.set("{scale}:orders:main", encode(replace(stale, epoch=first, pools=())))
        await until(lambda: REFUSED in caplog.text, "a look at them")
        assert pids_of(HOST) == pids
        assert agent.epoch == first + 1
        await leader.order()
        await until(lambda: not pids_of(HOST), "the end, by orders that count")


async def test_the_epoch_is_kept_over_a_restart(
    redis: Redis, url: str, leader: Leader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await leader.counts_from(2)
    assert await leader.order(launch("l-1", HOST)) == 3
    async with agent_here(redis, url, tmp_path):
        await until(lambda: pids_of(HOST), "the worker")
    pids = pids_of(HOST)
    # Redis lost all: the count of epochs begins anew.
    await redis.flushall()
    async with agent_here(redis, url, tmp_path, rewound_s=0.5) as agent:
        await leader.counts_from(1)
        assert await leader.order(launch("l-2", HOST)) == 2
        await until(lambda: REFUSED in caplog.text, "a look at them")
        assert agent.epoch == 3
        assert pids_of(HOST) == pids, "not yet believed"
        await until(lambda: pids_of(HOST).keys() == {"l-2"}, "the new count is followed once its leader led on")


async def test_a_redis_without_orders_ends_nobody(redis: Redis, url: str, leader: Leader, tmp_path: Path) -> None:
    await leader.order(launch("l-1", HOST))
    async with agent_here(redis, url, tmp_path) as agent:
        pids = await until(lambda: pids_of(HOST), "the worker")
        looks = _count_looks(agent)
        await redis.flushall()
        await until(lambda: len(looks) >= 3, "more looks")
        assert pids_of(HOST) == pids
        await until(lambda: leader.host(HOST), "it tells of itself again")


def _count_looks(agent: Agent) -> list[int]:
    """Grows with every look at orders that has ended."""
    looks: list[int] = []
    orders = agent._store.orders_in

    async def counted(group: str) -> Any:
        found = await orders(group)
        looks.append(found[0].epoch)
        return found

    agent._store.orders_in = counted  # type: ignore[method-assign]
    return looks


async def test_orders_of_a_wiped_redis_end_nobody_until_their_leader_has_led_on(
    redis: Redis, url: str, leader: Leader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await leader.counts_from(6)
    before = await leader.order(launch("l-1", HOST))
    async with agent_here(redis, url, tmp_path, rewound_s=1.0):
        pid = (await until(lambda: pids_of(HOST), "the worker"))["l-1"]
        await redis.flushall()
        # Nobody told the new leader of l-1 yet; its epoch is above all that were.
        assert await leader.order(launch("l-2", HOST)) > before
        await until(lambda: "l-2" in pids_of(HOST), "what is missing starts at once")
        assert pids_of(HOST)["l-1"] == pid, "and nobody has ended"
        assert KEPT in caplog.text
        await until(lambda: pids_of(HOST).keys() == {"l-2"}, "the end of l-1, once its leader has led on")


async def test_the_same_epoch_of_a_restarted_redis_is_not_the_same_leader(tmp_path: Path) -> None:
    """A server that kept nothing, started again; its orders bear the very epoch that the agent knows."""
    with running(next(iter(binaries()))) as first:
        redis = connect(first.url)
        leader = Leader(redis)
        await leader.counts_from(6)
        assert await leader.order(launch("l-1", HOST), launch("l-2", HOST)) == 7
        async with agent_here(redis, first.url, tmp_path, rewound_s=1.0):
            pids = await until(lambda: len(pids_of(HOST)) == 2 and pids_of(HOST), "the workers")
        await redis.aclose()
    with running(next(iter(binaries()))) as second:
        redis = connect(second.url)
        leader = Leader(redis)
        await leader.counts_from(6)
        assert await leader.order(launch("l-1", HOST)) == 7
        async with agent_here(redis, second.url, tmp_path, rewound_s=1.0) as agent:
            looks = _count_looks(agent)
            await until(lambda: len(looks) >= 3, "some looks")
            assert pids_of(HOST) == pids
            await until(lambda: pids_of(HOST) == {"l-1": pids["l-1"]}, "what is not ordered to end at last")
        await redis.aclose()


async def test_orders_that_forgot_how_a_worker_was_started_do_not_take_it_away(
    redis: Redis, url: str, leader: Leader, tmp_path: Path
) -> None:
    ordered = launch("l-1", HOST, 5, sim_gpu="A100")
    await leader.order(ordered)
    async with agent_here(redis, url, tmp_path) as agent:
        before = (await until(lambda: pids_of(HOST), "the worker"))["l-1"]
        report = await until(lambda: _with_pid(leader, before), "its report")
        assert (report.worker, report.need_bytes) == (ordered.worker, 5), "what a leader needs to adopt it"
        await leader.order(Launch("l-1", "p", host=HOST, ordered_at_ms=9))
        await until(lambda: agent._tending.wanted["l-1"].ordered_at_ms == 9, "the look")
        os.kill(before, signal.SIGKILL)
        after = await until(lambda: pids_of(HOST).get("l-1", before) != before and pids_of(HOST)["l-1"], "the next one")
        assert _variable(after, "PENSTOCK_WORKER__SIM_GPU") == "A100"
        report = await until(lambda: _with_pid(leader, after), "its report")
        assert (report.worker, report.need_bytes) == (ordered.worker, 5)


async def test_workers_are_taken_over_also_those_it_had_no_time_to_note(
    redis: Redis, url: str, leader: Leader, tmp_path: Path
) -> None:
    orders = [launch("l-1", HOST), launch("l-2", HOST)]
    await leader.order(*orders)
    async with agent_here(redis, url, tmp_path):
        await until(lambda: len(pids_of(HOST)) == 2, "the workers")
    pids = pids_of(HOST)
    (tmp_path / "state" / f"agent-{HOST}.json").unlink()
    async with agent_here(redis, url, tmp_path):
        await _reports_running(leader, pids)
        assert pids_of(HOST) == pids
        await leader.order(orders[0])
        await until(lambda: pids_of(HOST) == {"l-1": pids["l-1"]}, "what was taken over is ended by orders")


async def _reports_running(leader: Leader, pids: dict[str, int]) -> None:
    async def told() -> bool:
        said = await leader.host(HOST)
        return said is not None and {r.id: r.pid for r in said.launches} == pids

    await until(told, "the same pids in its report")


async def test_another_process_with_the_same_pid_is_not_taken_over(
    redis: Redis, url: str, leader: Leader, tmp_path: Path
) -> None:
    stranger = subprocess.Popen(SLEEP, start_new_session=True)  # noqa: ASYNC220 (nothing waits for it)
    try:
        found = identity_of(stranger.pid)
        assert found is not None
        for number, wrong in enumerate(
            (Identity(found.pid, "1", found.boot), Identity(found.pid, found.started, "another boot"))
        ):
            file = StateFile(tmp_path / "state", HOST)
            file.save(State(HOST, 0, (Kept(launch("l-1", HOST), wrong, since_ms=1),)))
            file.close()
            await leader.order(launch("l-1", HOST))
            async with agent_here(redis, url, tmp_path):
                pids = await until(lambda: pids_of(HOST), "one of its own")
                assert pids["l-1"] != stranger.pid, number
                await leader.order()
                await until(lambda: not pids_of(HOST), "its end")
            assert stranger.poll() is None, "the stranger was left alone"
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_crash_loop_opens_the_circuit_and_tells_why(
    redis: Redis, url: str, leader: Leader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_FIRST_DELAY_S", 0.01)
    starts = tmp_path / "starts"
    crashing = ["/bin/bash", "-c", f"echo $$ >> {starts}; echo 'no such model: x' >&2; exit 3"]
    await leader.order(launch("l-1", HOST))
    async with agent_here(redis, url, tmp_path, crashing, half_open_s=1.0) as agent:

        async def is_open() -> Any:
            report = await leader.report(HOST, "l-1")
            return report if report and report.state is LaunchState.CRASH_LOOP else None

        report = await until(is_open, "the circuit to open")
        assert "ended with code 3" in report.error
        assert report.last_words[-1] == "no such model: x"
        assert report.exits == 7
        # Another of its kind is not even tried; one of another kind is.
        await leader.order(launch("l-1", HOST), launch("l-2", HOST), launch("l-3", HOST, sim_gpu="A100"))

        async def other_kind_was_tried() -> bool:
            third, second = await leader.report(HOST, "l-3"), await leader.report(HOST, "l-2")
            return bool(third and third.exits and second and second.state is LaunchState.CRASH_LOOP)

        await until(other_kind_was_tried, "the others")
        second = await leader.report(HOST, "l-2")
        assert second is not None
        assert second.exits == 0
        assert "Others like it crashed" in second.error
        await leader.order(launch("l-1", HOST), launch("l-2", HOST))
        await until(lambda: agent_forgot(agent, "l-3"), "the other kind to go")
        tried = len(starts.read_text().splitlines())
        await until(lambda: len(starts.read_text().splitlines()) > tried, "one try, half open")
        assert len(starts.read_text().splitlines()) == tried + 1
        await until(is_open, "open again")


def agent_forgot(agent: Agent, name: str) -> bool:
    return name not in agent._tending.tended


async def test_a_code_that_says_usage_is_not_tried_again(redis: Redis, url: str, leader: Leader, tmp_path: Path) -> None:
    await leader.order(launch("l-1", HOST))
    async with agent_here(redis, url, tmp_path, ["/bin/bash", "-c", "exit 2"]):

        async def is_open() -> bool:
            report = await leader.report(HOST, "l-1")
            return bool(report and report.state is LaunchState.CRASH_LOOP and report.exits == 1)

        await until(is_open, "the circuit to open")


async def test_one_that_dies_is_started_again(redis: Redis, url: str, leader: Leader, tmp_path: Path) -> None:
    await leader.order(launch("l-1", HOST))
    async with agent_here(redis, url, tmp_path):
        before = (await until(lambda: pids_of(HOST), "the worker"))["l-1"]
        os.kill(before, signal.SIGKILL)
        after = (await until(lambda: pids_of(HOST).get("l-1", before) != before and pids_of(HOST), "the next one"))["l-1"]
        report = await until(lambda: _with_pid(leader, after), "its report")
        assert report.exits == 1
        assert "killed by signal 9" in report.error


async def _with_pid(leader: Leader, pid: int) -> Any:
    report = await leader.report(HOST, "l-1")
    return report if report and report.pid == pid else None


async def test_gpus_are_given_out_by_free_memory(redis: Redis, url: str, leader: Leader, tmp_path: Path) -> None:
    gib = 1 << 30
    sizes = {"l-1": 30, "l-2": 20, "l-3": 20, "l-4": 30, "l-5": 40}
    async with agent_here(redis, url, tmp_path, agent__fake_gpus=("A10=24", "H100=80"), agent__max_workers=None):
        for count in range(1, 6):
            await leader.order(*(launch(name, HOST, need * gib) for name, need in list(sizes.items())[:count]))

            async def is_done(count: int = count) -> bool:
                said = await leader.host(HOST)
                return said is not None and len(said.launches) == count and all(r.pid or r.error for r in said.launches)

            await until(is_done, f"launch {count} to be carried out")
        gpus = {name: _variable(pid, "CUDA_VISIBLE_DEVICES") for name, pid in pids_of(HOST).items()}
        # 30 and 20 on the large one leave 30 there: more than the 24 of the small one. Then 24 and 10 are left: too little.
        assert gpus == {"l-1": "fake-1", "l-2": "fake-1", "l-3": "fake-1"}
        said = await leader.host(HOST)
        assert said is not None
        assert [gpu.free_bytes // gib for gpu in said.gpus] == [24, 10]
        refused = await leader.report(HOST, "l-4")
        assert refused is not None
        assert refused.state is LaunchState.REFUSED
        assert "bytes free" in refused.error or "free on its best one" in refused.error
        await leader.order(*(launch(name, HOST, sizes[name] * gib) for name in ("l-2", "l-3", "l-4")))
        await until(lambda: "l-4" in pids_of(HOST), "room for the one that was refused")


def _variable(pid: int, name: str) -> str:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((p.partition(b"=")[2].decode() for p in pairs if p.startswith(name.encode() + b"=")), "")


async def test_an_order_for_what_no_pool_may_set_is_refused(redis: Redis, url: str, leader: Leader, tmp_path: Path) -> None:
    await leader.order(launch("l-1", HOST, upstream_api_key="x"))
    async with agent_here(redis, url, tmp_path):

        async def is_refused() -> bool:
            report = await leader.report(HOST, "l-1")
            return bool(report and report.state is LaunchState.REFUSED and "upstream_api_key" in report.error)

        await until(is_refused, "the refusal")
        assert not pids_of(HOST)


async def test_two_agents_of_one_name_are_refused(redis: Redis, url: str, tmp_path: Path) -> None:
    async with agent_here(redis, url, tmp_path):
        with pytest.raises(PenstockError, match="runs here already"):
            StateFile(tmp_path / "state", HOST)


def test_a_state_that_cannot_be_read_is_no_end(tmp_path: Path) -> None:
    file = StateFile(tmp_path, HOST)
    (tmp_path / f"agent-{HOST}.json").write_text("{half")
    assert file.load() == State(HOST)
    file.close()


async def test_a_second_machine_of_the_same_name_does_nothing_until_the_first_is_gone(
    redis: Redis, url: str, leader: Leader, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "REPORT_TTL_S", 0.5)
    starts = tmp_path / "starts"
    counting = ["/bin/bash", "-c", f"echo $PENSTOCK_WORKER__LAUNCH >> {starts}; exec sleep 600"]
    await leader.order(launch("l-1", HOST))
    async with agent_here(redis, url, tmp_path / "one", counting) as first:
        await until(lambda: pids_of(HOST), "the worker")
        async with agent_here(redis, url, tmp_path / "two", counting) as second:
            await until(lambda: "Another agent speaks for a host of this name" in caplog.text, "the refusal")
            await leader.order(launch("l-1", HOST), launch("l-2", HOST))
            await until(lambda: "l-2" in pids_of(HOST), "the first one's work")
            said = await leader.host(HOST)
            assert said is not None
            assert said.agent == first._file.owner != second._file.owner
            assert second._tending.tended == {}
            assert starts.read_text().split() == ["l-1", "l-2"], "each once"
            first_of_all = pids_of(HOST)
            # The first one no longer reaches Redis: its name becomes free, and when it is back it is another's.
            dead = connect(f"unix://{tmp_path}/nobody")
            first._store = first._telling._store = ScaleStore(dead)
            await until(lambda: second._tending.tended.keys() == {"l-1", "l-2"}, "the other one has the name")
            first._store = first._telling._store = leader.store
            await until(lambda: first._telling.other == second._file.owner, "the first one learns of it")
            await leader.order(launch("l-1", HOST), launch("l-2", HOST), launch("l-3", HOST))
            await until(lambda: len(starts.read_text().split()) == 3, "the second one's work")
            assert pids_of(HOST).items() >= first_of_all.items()
            assert "l-3" not in first._tending.tended
            await dead.aclose()


async def test_words_that_cannot_be_a_file_or_an_environment_are_refused_and_the_rest_runs(
    redis: Redis, url: str, leader: Leader, tmp_path: Path
) -> None:
    bad = {
        "../../out": "is no launch id",
        ".hidden": "is no launch id",
        "x" * 65: "is no launch id",
        "a/b": "is no launch id",
        "n\0l": "is no launch id",
        "l-nul": "'sim_gpu' of launch l-nul holds a NUL",
    }
    launches = [launch(name, HOST, sim_gpu="a\0b" if name == "l-nul" else "A10") for name in bad]
    await leader.order(*launches, launch("l-good", HOST))
    async with agent_here(redis, url, tmp_path):
        for name, why in bad.items():

            async def is_refused(name: str = name, why: str = why) -> bool:
                report = await leader.report(HOST, name)
                return bool(report and report.state is LaunchState.REFUSED and why in report.error)

            await until(is_refused, f"the refusal of {name!r}")
        await until(lambda: pids_of(HOST).keys() == {"l-good"}, "the good one")
        assert [name for _, _, files in os.walk(tmp_path) for name in files if name.endswith(".log")] == ["l-good.log"]


async def test_the_end_of_a_worker_it_never_heard_of_costs_no_time_while_redis_is_away(
    redis: Redis, url: str, leader: Leader, tmp_path: Path
) -> None:
    await leader.order(launch("l-1", HOST))
    async with agent_here(redis, url, tmp_path):
        pids = await until(lambda: pids_of(HOST), "the worker")
    (tmp_path / "state" / f"agent-{HOST}.json").unlink()
    async with agent_here(redis, f"unix://{tmp_path}/nobody", tmp_path) as agent:
        dead = connect(f"unix://{tmp_path}/nobody")
        agent._store = agent._telling._store = ScaleStore(dead)
        await until(lambda: "l-1" in agent._tending.tended, "the take over")
        os.kill(pids["l-1"], signal.SIGKILL)
        await until(lambda: agent._tending.tended["l-1"].exits, "its end to be seen")
        rounds: list[None] = []
        carry_out = agent._tending.carry_out
        agent._tending.carry_out = lambda: (rounds.append(None), carry_out())[1]  # type: ignore[method-assign,func-returns-value]
        # Longer than its first delay: what cannot be started again is not due again and again.
        await asyncio.sleep(0.8)
        assert 1 <= len(rounds) < 30
        agent._store = agent._telling._store = leader.store
        await until(lambda: "l-1" in pids_of(HOST), "once the orders can be read it is started again")
        await dead.aclose()


def test_a_log_is_cut_to_its_end_under_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "l.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(1000):
            writer.write(b"line %d\n" % number)
        bound(log, 5000, 1000)
        assert log.stat().st_size <= 1000
        writer.write(b"after\n")
    lines = log.read_text().splitlines()
    assert lines[-2:] == ["line 999", "after"]
    assert all(line.startswith("line ") for line in lines[:-1]), "no half line"
    bound(log, 5000, 1000)
    assert log.read_text().splitlines() == lines
