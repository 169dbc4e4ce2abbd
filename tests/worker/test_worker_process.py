"""Real worker processes and real servers, killed and restarted: what a client is owed comes all the same."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from dispatch.settings import QueueSettings
from dispatch.states import RequestState, WorkerState
from tests.servers import binaries
from tests.worker.conftest import Client, until
from tests.worker.test_worker import expected, working

_LEASE_S = 1.0


@pytest.fixture
def rules() -> QueueRules:
    return QueueSettings(lease_s=_LEASE_S).rules()


@contextmanager
def worker_process(url: str, speed: float, *, drain_s: float = 0.5) -> Iterator[subprocess.Popen[bytes]]:
    """A sim worker (H100) in a process of its own."""
    settings = {
        "REDIS__URL": url,
        "QUEUE__LEASE_S": str(_LEASE_S),
        "WORKER__ENGINE": "sim",
        "WORKER__SIM_GPU": "H100",
        "WORKER__SIM_SPEED": str(speed),
        "WORKER__HEARTBEAT_S": "0.2",
        "WORKER__DRAIN_TIMEOUT_S": str(drain_s),
        "LOG__FORMAT": "json",
    }
    environment = {**os.environ, **{f"PENSTOCK_{name}": value for name, value in settings.items()}}
    process = subprocess.Popen([sys.executable, "-m", "penstock", "worker"], env=environment, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


async def ready(fleet: Fleet, count: int = 1) -> None:
    async def are_ready() -> bool:
        return [h.state for h in await fleet.workers()].count(WorkerState.READY) == count

    await until(are_ready)


async def exit_code(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, said = await asyncio.wait_for(asyncio.to_thread(process.communicate), 15)
    return process.returncode, said.decode()


async def test_sigterm_finishes_or_gives_back_uncharged(server_url: str, client: Client, fleet: Fleet) -> None:
    with worker_process(server_url, 1.0) as process:
        await ready(fleet)
        short, long = await client.ask("short", 40), await client.ask("long", 2000)
        await client.wrote(short)
        await client.wrote(long)
        process.send_signal(signal.SIGTERM)
        code, said = await exit_code(process)
    assert code == 0, said
    assert '"event": "ready"' in said or '"event":"ready"' in said, said
    assert await client.state(short) is RequestState.COMPLETED
    assert await client.state(long) is RequestState.QUEUED
    record = await client.queue.record(long)
    assert record is not None and record.charged == 0
    assert await fleet.workers() == []
    await client.queue.cancel(long)


async def test_sigkill_and_another_goes_on_with_the_text(
    server_url: str, client: Client, fleet: Fleet, rules: QueueRules
) -> None:
    with worker_process(server_url, 0.5) as process:
        await ready(fleet)
        request = await client.ask("survive", 300)
        await client.wrote(request, 20)
        process.send_signal(signal.SIGKILL)
        await exit_code(process)
    async with working(server_url, rules):
        assert await client.ended(request) is RequestState.COMPLETED
    text, tokens, end = await client.answer(request)
    assert (text, tokens) == expected("survive", 300)
    assert 0 < end["usage"].pop("resumed_tokens") < 300
    assert end["usage"] == {"prompt_tokens": 2, "completion_tokens": 300, "total_tokens": 302}
    record = await client.queue.record(request)
    assert record is not None and (record.charged, record.attempt) == (1, 2)


class DurableServer:
    """A server that keeps all it was told, and can be killed and started again."""

    def __init__(self, folder: str) -> None:
        self.url = f"unix://{folder}/server.sock"
        self._command = [next(iter(binaries().values())), "--port", "0", "--unixsocket", f"{folder}/server.sock"]
        self._command += ["--dir", folder, "--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


async def test_redis_goes_away_and_comes_back(rules: QueueRules) -> None:
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as folder:
        server = DurableServer(folder)
        redis = connect(server.url)
        client = Client(Queue(redis, rules))

        async def answers() -> bool:
            try:
                return bool(await redis.ping())
            except STORE_FAULT:
                return False

        try:
            await until(answers)
            async with working(server.url, rules, sim_gpu="H100", sim_speed=0.5) as worker:
                request = await client.ask("patience", 150)
                await client.wrote(request, 10)
                server.kill()
                made = worker._room.engine.steps()

                async def goes_on() -> bool:
                    return worker._room.engine.steps() > made + 50

                await until(goes_on)  # Redis being away stops no computation
                server.start()
                await until(answers)
                assert await client.ended(request) is RequestState.COMPLETED
                following = await client.ask("after", 10)
                assert await client.ended(following) is RequestState.COMPLETED
            text, tokens, end = await client.answer(request)
            assert (text, tokens) == expected("patience", 150)
            assert end["attempts"] == 1
        finally:
            await redis.aclose()
            server.kill()
