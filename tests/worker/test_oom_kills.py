"""The kernel's counters of out-of-memory kills: found and read in both kinds of cgroups, and one real kill."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatch.settings import WorkerSettings
from tests.worker.conftest import until
from worker.engines.base import EngineDead
from worker.engines.oom_kills import OomKills, OomWatch, counter_files, read_oom_kills
from worker.engines.process import ProcessEngine

PID = 4711
MEMORY = Path("/sys/fs/cgroup/memory")


def _proc(tmp_path: Path, cgroup: str, mounts: str) -> Path:
    proc = tmp_path / "proc"
    for folder in (proc / "self", proc / str(PID)):
        folder.mkdir(parents=True)
    (proc / str(PID) / "cgroup").write_text(cgroup)
    (proc / "self" / "mountinfo").write_text(mounts)
    (proc / "vmstat").write_text("nr_free_pages 5\noom_kill 3\n")
    return proc


def test_a_unified_cgroup_is_read(tmp_path: Path) -> None:
    mount = tmp_path / "unified"
    (mount / "pods" / "a").mkdir(parents=True)
    (mount / "pods" / "a" / "memory.events").write_text("low 0\nhigh 9\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n")
    proc = _proc(tmp_path, "0::/pods/a\n", f"30 23 0:26 / {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n")
    files = counter_files(PID, proc)
    assert files == (proc / "vmstat", mount / "pods" / "a" / "memory.events")
    assert list(read_oom_kills(files).counts.values()) == [3, 1]


def test_a_legacy_cgroup_is_read_below_the_root_of_its_mount(tmp_path: Path) -> None:
    mount = tmp_path / "memory"
    (mount / "engine").mkdir(parents=True)
    (mount / "engine" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    mounts = (
        f"31 23 0:28 / {tmp_path} rw - tmpfs tmpfs rw\n32 31 0:29 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu\n"
        f"35 31 0:32 /box {mount} rw,relatime - cgroup cgroup rw,memory\n"
    )
    proc = _proc(tmp_path, "5:cpu:/box/engine\n4:memory:/box/engine\n0::/\n", mounts)
    assert counter_files(PID, proc) == (proc / "vmstat", mount / "engine" / "memory.oom_control")


def test_what_is_not_there_counts_nothing(tmp_path: Path) -> None:
    assert counter_files(PID, tmp_path) == ()
    assert counter_files(2**22 + 1) == ()
    (tmp_path / "memory.events").write_text("nonsense\noom_kill many\n")
    assert read_oom_kills((tmp_path / "memory.events", tmp_path / "gone")) == OomKills()


def test_only_a_counter_that_rose_tells() -> None:
    assert OomKills({"a": 2}).rose_since(OomKills({"a": 1}))
    assert not OomKills({"a": 2}).rose_since(OomKills({"a": 2}))
    assert not OomKills({"b": 2}).rose_since(OomKills({"a": 1}))  # another cgroup's: new to us
    assert not OomKills().rose_since(OomKills({"a": 1}))


def test_an_old_kill_is_not_blamed_on_a_new_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 0\n")
    monkeypatch.setattr("worker.engines.oom_kills.counter_files", lambda pid: (counter,))
    watch = OomWatch(PID)
    counter.write_text("oom_kill 1\n")
    watch.look()
    assert watch.rose_since_the_look_before()  # a look may fall between the kill and the death
    watch.look()
    assert not watch.rose_since_the_look_before()


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of 24 MiB."""
    folder = MEMORY / f"penstock-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(24 * 2**20))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield folder
    folder.rmdir()


GREEDY = """#!{python}
import os, sys
sys.path.insert(0, {root!r})
sys.argv = [sys.argv[0], sys.argv[-1]]
from worker.engines import host
from worker.engines.sim import SimEngine

class Greedy(SimEngine):
    async def probe(self):
        with open(os.path.join({group!r}, "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))
        await host.asyncio.sleep(3)  # its worker looks where it is now
        hoard = [bytearray(os.urandom(2**20)) for _ in range(200)]
        await host.asyncio.sleep(60 + len(hoard))

host.load_engine = lambda name, settings: Greedy(settings)
host.main()
"""


async def test_an_engine_that_the_kernel_kills_for_memory_is_to_blame(
    small_cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "greedy"
    root = str(Path(__file__).parent.parent.parent)
    script.write_text(GREEDY.format(python=sys.executable, root=root, group=str(small_cgroup)))
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    engine = ProcessEngine("sim", WorkerSettings(engine="sim", model="sim"))
    await engine.start()
    with pytest.raises(EngineDead, match="killed by the kernel: out of memory") as dead:
        async with asyncio.timeout(30):
            await engine.probe()
    assert dead.value.own_fault
    await engine.close()


async def test_a_kill_from_outside_is_still_nobodys_crash() -> None:
    engine = ProcessEngine("sim", WorkerSettings(engine="sim", model="sim"))
    await engine.start()
    os.kill(engine.pid or 0, signal.SIGKILL)

    async def dead() -> bool:
        try:
            engine.steps()
        except EngineDead as error:
            assert not error.own_fault and "SIGKILL" in str(error)
            return True
        return False

    await until(dead)
    await engine.close()
