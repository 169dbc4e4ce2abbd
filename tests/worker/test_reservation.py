"""Two workers on one device: they start one after another, and each sees what the other was promised. With real processes."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dispatch.fleet import Fleet
from dispatch.reports import GpuStatus
from dispatch.rules import QueueRules
from dispatch.settings import WorkerSettings
from dispatch.states import WorkerState
from tests.worker.conftest import until
from tests.worker.test_worker import working
from worker import reservation
from worker.gpu import FakeGpus, HostMemory
from worker.placing import Place
from worker.reservation import folder, promise, promised_elsewhere_bytes, start_lock, withdraw

MB = 1 << 20


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_RUNTIME_DIR", str(tmp_path))


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process of this user; it says a line when it has come so far, and waits for one before it ends."""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


HOLDS_THE_LOCK = """
import asyncio, sys
from worker.reservation import start_lock
async def main():
    async with start_lock("GPU-1"):
        print("held", flush=True)
        sys.stdin.readline()
asyncio.run(main())
"""

WAS_PROMISED = f"""
import os, sys
from worker.reservation import promise, rss_bytes
promise("host", os.getpid(), rss_bytes() + {200 * MB})
print("promised", flush=True)
while sys.stdin.readline():
    taken = bytearray({200 * MB})
    taken[::4096] = b"x" * len(taken[::4096])
    print("taken", flush=True)
"""


SIZES = f"""
import os, sys
from worker.reservation import promise, sizing_lock
with sizing_lock("host"):
    print("sizing", flush=True)
    sys.stdin.readline()
    promise("host", os.getpid(), {10_000 * MB})
sys.stdin.readline()
"""


async def took(device: str) -> None:
    async with start_lock(device):
        pass


async def test_a_start_waits_for_the_one_under_way_and_not_on_another_device() -> None:
    with process(HOLDS_THE_LOCK) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        await asyncio.wait_for(took("GPU-2"), 5)
        waits = asyncio.Event()

        async def wait() -> None:
            async with start_lock("GPU-1", waits.set):
                pass

        mine = asyncio.create_task(wait())
        await asyncio.wait_for(waits.wait(), 5)
        assert not mine.done()
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        await asyncio.wait_for(mine, 10)


async def test_a_start_that_is_killed_blocks_nobody() -> None:
    with process(HOLDS_THE_LOCK) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        mine = asyncio.create_task(took("GPU-1"))
        other.kill()
        await asyncio.wait_for(mine, 5)


async def test_a_start_that_is_given_up_while_it_waits_leaves_the_lock_alone() -> None:
    async with start_lock("GPU-1"):
        waits = asyncio.create_task(took("GPU-1"))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
    await asyncio.wait_for(took("GPU-1"), 5)


def test_what_another_was_promised_counts_until_it_holds_it_or_is_dead() -> None:
    assert promised_elsewhere_bytes("host", ()) == 0
    with process(WAS_PROMISED) as other:
        assert other.stdin is not None and other.stdout is not None and other.stdout.readline() == "promised\n"
        assert promised_elsewhere_bytes("host", ()) == pytest.approx(200 * MB, abs=8 * MB)
        assert promised_elsewhere_bytes("host", (other.pid,)) == 0
        assert promised_elsewhere_bytes("GPU-1", ()) == 0
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "taken\n"
        assert promised_elsewhere_bytes("host", ()) < 8 * MB  # it is seen in what is free now
    assert promised_elsewhere_bytes("host", ()) == 0
    assert not list(folder().glob("*.json"))  # what the dead left is cleared away


def test_a_number_that_was_used_again_is_not_taken_for_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    with process("input()") as other:
        promise("host", other.pid, 10**15)
        assert promised_elsewhere_bytes("host", ()) > 10**14
        monkeypatch.setattr(reservation, "_started", lambda pid: "another moment")
        assert promised_elsewhere_bytes("host", ()) == 0


def test_what_nobody_of_ours_wrote_is_passed_over() -> None:
    (folder() / "host.1.json").write_text("not a record")
    assert promised_elsewhere_bytes("host", ()) == 0
    withdraw("host", 99)  # was never promised anything


async def test_a_place_is_known_before_the_engine_runs() -> None:
    gpus = FakeGpus(GpuStatus("GPU-7", "Fake", 2, 1), GpuStatus("GPU-8", "Fake", 2, 1))

    def place(engine: str, device: str, seen: FakeGpus | HostMemory = gpus) -> str | None:
        return Place(WorkerSettings(engine=engine, device=device), seen).device

    assert (place("transformers", "auto"), place("transformers", "cuda:1")) == ("GPU-7", "GPU-8")
    assert (place("transformers", "cpu"), place("transformers", "auto", HostMemory())) == (None, None)  # loading measures nothing
    assert place("sim", "auto") is None and place("upstream", "auto") is None


async def test_a_start_that_hangs_is_not_waited_for_for_ever() -> None:
    with process(HOLDS_THE_LOCK) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        async with start_lock("GPU-1", patience_s=0.3):
            pass


def test_sizing_waits_for_the_promise_of_the_one_before() -> None:
    with process(SIZES) as other:
        assert other.stdin is not None and other.stdout is not None and other.stdout.readline() == "sizing\n"
        other.stdin.write("\n")
        other.stdin.flush()
        with reservation.sizing_lock("host"):
            assert promised_elsewhere_bytes("host", ()) > 100 * MB


async def test_a_worker_says_that_it_waits_its_turn_and_then_starts(
    server_url: str, rules: QueueRules, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Place, "_find", staticmethod(lambda *_: "GPU-1"))
    made = working(server_url, rules, engine="transformers", device="cpu", kv_tokens=512, slots=2)
    async with start_lock("GPU-1"):
        starting = asyncio.create_task(made.__aenter__())

        async def says_so() -> bool:
            return [h.progress for h in await fleet.workers()] == ["waiting for another worker to start on this device"]

        await until(says_so)
        assert promised_elsewhere_bytes("host", ()) == 0
    worker = await starting
    try:
        assert worker.state is WorkerState.READY
        assert len(list(folder().glob("host.*.json"))) == 1
    finally:
        await made.__aexit__(None, None, None)
    assert not list(folder().glob("host.*.json"))


async def test_without_a_folder_a_worker_starts_and_beats_as_if_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login's runtime folder goes when its user logs out; the worker that was started there goes on."""
    nowhere = tmp_path / "file"
    nowhere.write_text("no folder")
    monkeypatch.setenv("PENSTOCK_RUNTIME_DIR", str(nowhere))
    with pytest.raises(OSError, match="file"):
        folder()
    await asyncio.wait_for(took("GPU-1"), 5)
    with reservation.sizing_lock("host"):
        promise("host", 1, MB)
    withdraw("host", 1)
    assert promised_elsewhere_bytes("host", ()) == 0


def test_a_folder_of_another_user_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder()
    owner = path.stat().st_uid
    monkeypatch.setattr("worker.reservation.os.getuid", lambda: owner + 1)
    path.rename(path.with_name(f"penstock-{owner + 1}"))
    with pytest.raises(PermissionError, match="another user"):
        folder()
