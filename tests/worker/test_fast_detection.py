"""Workers in processes of their own, ended in every way: the launcher's word moves their requests on before any lease lapses."""

import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from autoscaler.launchers.aftermath import Aftermath
from autoscaler.launchers.children import LocalProcesses
from autoscaler.launchers.local import worker_environment
from dispatch.fleet import Fleet
from dispatch.messages import EntryKind, LogEntry
from dispatch.queue import Queue
from dispatch.records import RequestRecord
from dispatch.rules import QueueRules
from dispatch.scaling import Launch
from dispatch.settings import Settings
from dispatch.states import RequestState, WorkerState
from dispatch.tasks import cancelled
from tests.worker.conftest import Client, until
from tests.worker.test_worker import expected

LEASE_S = 10.0  # far longer than anything here may take


@pytest.fixture
def rules(request: pytest.FixtureRequest) -> QueueRules:
    return QueueRules(lease_ms=int(getattr(request, "param", LEASE_S) * 1000))


class Launched:
    """Sim workers (H100) as `up` starts them, by name and process id."""

    def __init__(self, processes: LocalProcesses, settings: Settings, fleet: Fleet) -> None:
        self.processes = processes
        self.pids: dict[str, int] = {}
        self._settings, self._fleet = settings, fleet

    async def start(self, name: str) -> None:
        environment = worker_environment(os.environ, self._settings, Launch(name, "p"))
        launched = await self.processes.start(name, [sys.executable, "-m", "penstock", "worker"], environment)
        self.pids[name] = launched.pid

        async def is_ready() -> bool:
            return any(h.pid == self.pids[name] and h.state is WorkerState.READY for h in await self._fleet.workers())

        await until(is_ready)

    async def working_on(self, record: RequestRecord) -> str:
        """The name of the worker that holds it."""
        pid = next(h.pid for h in await self._fleet.workers() if h.id == record.worker)
        return next(name for name, other in self.pids.items() if other == pid)


@asynccontextmanager
async def launched(
    url: str, queue: Queue, fleet: Fleet, folder: Path, names: Sequence[str], **worker: object
) -> AsyncIterator[Launched]:
    lease_s = queue.rules.lease_ms / 1000
    numbers = {"engine": "sim", "sim_gpu": "H100", "heartbeat_s": 0.5, "drain_timeout_s": 0.5, **worker}
    settings = Settings.model_validate({"redis": {"url": url}, "queue": {"lease_s": lease_s}, "worker": numbers})
    processes = LocalProcesses(folder)
    house, aftermath = Launched(processes, settings, fleet), Aftermath(queue, fleet)

    async def watch() -> None:
        async for end in processes.exits():
            await aftermath.of(end)

    watching = asyncio.create_task(watch())
    try:
        await asyncio.gather(*(house.start(name) for name in names))
        yield house
    finally:
        for name in names:
            processes.kill(name)
            await processes.gone(name)
        await cancelled(watching)


async def record_of(client: Client, request: str) -> RequestRecord:
    record = await client.queue.record(request)
    assert record is not None
    return record


async def next_token_after(client: Client, request: str, attempt: int) -> None:
    """Read as a gateway does, until a later attempt than that has written."""

    def is_it(entry: LogEntry | None) -> bool:  # the feed has all that this reader attached to
        return entry is not None and (entry.request, entry.kind) == (request, EntryKind.CHUNK) and entry.attempt > attempt

    attached = await client.queue.attach(request, "reader")
    entries, after = list(attached.entries), "0"
    while not any(is_it(entry) for entry in entries):
        after, entries = await client.queue.read_feed("reader", after, block_ms=5_000)  # type: ignore[assignment]
    await client.queue.detach(request, "reader")


@pytest.mark.parametrize(
    ("number", "crashes"), [(signal.SIGKILL, 0), (signal.SIGSEGV, 1)], ids=["killed from outside", "by its own fault"]
)
async def test_a_dead_process_moves_its_requests_on_at_once(
    number: int, crashes: int, server_url: str, client: Client, queue: Queue, fleet: Fleet, tmp_path: Path
) -> None:
    async with launched(server_url, queue, fleet, tmp_path, ["one", "two"], sim_speed=0.5) as house:
        request = await client.ask("survive", 120)
        await client.wrote(request, 10)
        victim = await house.working_on(await record_of(client, request))
        killed_at = time.monotonic()
        house.processes.kill(victim, number)
        await asyncio.wait_for(next_token_after(client, request, 1), 5)
        assert time.monotonic() - killed_at < 3  # the lease is 10 s, and the heartbeat's TTL 5
        assert await client.ended(request) is RequestState.COMPLETED
        assert (await client.answer(request))[:2] == expected("survive", 120)
        record = await record_of(client, request)
        assert (record.attempt, record.charged, record.crashes) == (2, 1, crashes)

        async def has_left() -> bool:
            return house.pids[victim] not in [h.pid for h in await fleet.workers()]

        await until(has_left)


async def test_a_clean_exit_abandons_nothing(server_url: str, client: Client, queue: Queue, fleet: Fleet, tmp_path: Path) -> None:
    async with launched(server_url, queue, fleet, tmp_path, ["one", "two"], sim_speed=0.5) as house:
        request = await client.ask("drained", 400)
        await client.wrote(request, 3)
        house.processes.kill(await house.working_on(await record_of(client, request)), signal.SIGTERM)
        await asyncio.wait_for(next_token_after(client, request, 1), 5)
        record = await record_of(client, request)
        assert (record.attempt, record.charged, record.crashes) == (2, 0, 0)
        await client.queue.cancel(request)


async def test_from_sigkill_to_the_next_token(
    server_url: str, client: Client, queue: Queue, fleet: Fleet, tmp_path: Path
) -> None:
    """The figure: half of the requests whose worker is killed get on within 1.5 s."""
    took_s = []
    async with launched(server_url, queue, fleet, tmp_path, ["w0", "w1"], sim_speed=0.5) as house:
        for i in range(5):
            request = await client.ask(f"round {i}", 2000)
            await client.wrote(request, 3)
            victim = await house.working_on(await record_of(client, request))
            killed_at = time.monotonic()
            house.processes.kill(victim)
            await asyncio.wait_for(next_token_after(client, request, 1), 8)
            took_s.append(time.monotonic() - killed_at)
            await client.queue.cancel(request)
            await house.processes.gone(victim)
            await house.start(victim)
    print("from SIGKILL to the next token:", " ".join(f"{s:.3f}" for s in sorted(took_s)), "s")
    assert statistics.median(took_s) <= 1.5


@pytest.mark.parametrize("rules", [1.0], indirect=True)
async def test_a_worker_stopped_for_longer_than_its_lease_cannot_write_and_works_on(
    server_url: str, client: Client, queue: Queue, fleet: Fleet, tmp_path: Path
) -> None:
    worker = {"heartbeat_s": 0.2, "isolate": True, "hang_s": 1.0}
    async with launched(server_url, queue, fleet, tmp_path, ["one"], sim_speed=0.2, **worker) as house:
        (first,) = await fleet.workers()
        request = await client.ask("stopped", 100)
        await client.wrote(request, 5)
        house.processes.kill("one", signal.SIGSTOP)
        stopped_at = time.monotonic()
        await house.start("two")

        async def goes_on_elsewhere() -> bool:
            await queue.sweep()
            return (await queue.output(request))[-1].attempt > 1

        await until(goes_on_elsewhere)
        assert time.monotonic() - stopped_at > 1.5 * queue.rules.lease_ms / 1000
        house.processes.kill("one", signal.SIGCONT)
        assert await client.ended(request) is RequestState.COMPLETED
        entries = [e for e in await queue.output(request) if e.kind is EntryKind.CHUNK]
        assert (await client.answer(request))[:2] == expected("stopped", 100)
        attempts = [e.attempt for e in entries]
        assert attempts == sorted(attempts) and len(set(attempts)) == 2
        record = await record_of(client, request)
        assert (record.charged, record.crashes) == (1, 0)
        # It is the same incarnation, with the same engine, and takes work again.
        house.processes.kill("two", signal.SIGTERM)
        await house.processes.gone("two")

        async def is_back() -> bool:
            return [(h.id, h.state) for h in await fleet.workers()] == [(first.id, WorkerState.READY)]

        await until(is_back)
        following = await client.ask("after", 10)
        assert await client.ended(following) is RequestState.COMPLETED
        assert (await record_of(client, following)).worker == first.id


@pytest.mark.parametrize("rules", [1.0], indirect=True)
async def test_a_request_of_many_leases_runs_once(
    server_url: str, client: Client, queue: Queue, fleet: Fleet, tmp_path: Path
) -> None:
    async with launched(server_url, queue, fleet, tmp_path, ["one", "two"], heartbeat_s=0.2, sim_speed=0.15):
        began = time.monotonic()
        request = await client.ask("long", 300)  # 12 s
        assert await client.ended(request, timeout_s=40) is RequestState.COMPLETED
        assert time.monotonic() - began > 10 * queue.rules.lease_ms / 1000
    assert {e.attempt for e in await queue.output(request)} == {1}
    record = await record_of(client, request)
    assert (record.attempt, record.charged) == (1, 0)
