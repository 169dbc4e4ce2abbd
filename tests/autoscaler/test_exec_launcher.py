"""The exec launcher with real programs: the example of the docs starts real workers; bad programs are named."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from autoscaler.launchers.exec import ExecLauncher
from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.scaling import Launch, LaunchState, Orders, PoolOrders
from dispatch.settings import Settings
from dispatch.states import WorkerState

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "launch.py"
SIM = {"model": "demo", "engine": "sim", "sim_speed": "100"}


def settings(script: str, **more: Any) -> Settings:
    return Settings.model_validate({"autoscaler": {"script": script, **more}, "worker": {"drain_timeout_s": 1}})


def program(folder: Path, body: str) -> str:
    path = folder / "program.py"
    path.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{body}\n")
    path.chmod(0o755)
    return str(path)


def orders(*ids: str, epoch: int = 1) -> Orders:
    return Orders("main", epoch, (PoolOrders("p", "demo", tuple(Launch(i, "p", SIM) for i in ids)),))


async def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Wait for what a function, or coroutine function, returns to be true."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < give_up_at, "it did not happen"
        await asyncio.sleep(0.05)


def process_is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
async def example(tmp_path: Path, server_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ExecLauncher]:
    """The launcher with the example. Whatever it started is gone afterwards."""
    (tmp_path / "workers.env").write_text(f"# ours\nPENSTOCK_REDIS__URL={server_url}\n")
    monkeypatch.setenv("LAUNCH_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("LAUNCH_ENV", str(tmp_path / "workers.env"))
    monkeypatch.setenv("LAUNCH_COMMAND", f"{sys.executable} -m penstock worker")
    monkeypatch.setenv("LAUNCH_MOST", "2")
    monkeypatch.setenv("PENSTOCK_API_KEYS", "not-for-the-program")
    yield ExecLauncher(settings(f"{sys.executable} {EXAMPLE}"))
    for path in (tmp_path / "state").glob("*.json"):
        worker = json.loads(path.read_text())
        if process_is_there(worker["pid"]):
            os.kill(worker["pid"], signal.SIGKILL)


async def ready(fleet: Fleet) -> dict[str, int]:
    return {beat.launch: beat.pid for beat in await fleet.workers() if beat.state is WorkerState.READY}


async def test_the_example_starts_keeps_restarts_and_ends_real_workers(example: ExecLauncher, redis: Redis, fleet: Fleet) -> None:
    await asyncio.gather(*(example.apply(orders("a", "b")) for _ in range(3)))  # doubled orders are one order
    await until(lambda: _names(fleet, {"a", "b"}))
    pids = await ready(fleet)
    assert {beat.pool for beat in await fleet.workers()} == {"p"}
    assert len(await fleet.workers()) == 2
    told = await example.reports()
    assert {i: (r.state, r.pid, r.pool) for i, r in told.items()} == {
        i: (LaunchState.RUNNING, pid, "p") for i, pid in pids.items()
    }
    assert "2 workers" in await example.unplaceable("p", 0)

    await example.apply(orders("a", "b"))
    assert (await example.reports()).keys() == {"a", "b"}
    assert await ready(fleet) == pids  # repeating changed nothing

    os.kill(pids["a"], signal.SIGKILL)
    await until(lambda: not process_is_there(pids["a"]))
    fallen = (await example.reports())["a"]
    assert (fallen.state, fallen.exits, fallen.pid) == (LaunchState.BACKOFF, 1, 0)
    assert fallen.last_words

    async def again() -> bool:
        await example.apply(orders("a", "b"))
        return (await example.reports())["a"].state is LaunchState.RUNNING

    await until(again)
    assert (await example.reports())["a"].exits == 1

    with pytest.raises(PenstockError) as stale:
        await ExecLauncher(settings(f"{sys.executable} {EXAMPLE}")).apply(orders(epoch=0))
    assert "orders of epoch 0 are stale: epoch 1 has begun" in stale.value.message

    async def emptied() -> bool:
        await example.apply(orders(epoch=2))
        return not await example.reports()

    last = [report.pid for report in (await example.reports()).values()]
    await until(emptied)
    assert not any(map(process_is_there, last))
    assert await example.unplaceable("p", 0) == ""
    await redis.flushall()


async def _names(fleet: Fleet, wanted: set[str]) -> bool:
    return (await ready(fleet)).keys() == wanted


async def test_the_document_is_the_documented_one_and_carries_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEYS", "secret-one")
    monkeypatch.setenv("REDIS_URL", "redis://:secret-two@x")
    path = program(tmp_path, f"open({str(tmp_path / 'told')!r}, 'w').write(sys.stdin.read() + repr(dict(os.environ)))")
    await ExecLauncher(settings(path)).apply(orders("a"))
    told = (tmp_path / "told").read_text()
    assert "secret-" not in told
    document, _ = json.JSONDecoder().raw_decode(told)
    assert document == {
        "v": 1,
        "action": "apply",
        "group": "main",
        "kill_after_s": 11.0,
        "orders": {
            "group": "main",
            "epoch": 1,
            "v": 1,
            "pools": [
                {
                    "pool": "p",
                    "model": "demo",
                    "retiring": [],
                    "launcher": "",
                    "launches": [{"id": "a", "pool": "p", "worker": SIM, "host": "", "need_bytes": 0, "ordered_at_ms": 0}],
                }
            ],
        },
    }


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "print('{}'); print('first', file=sys.stderr); print('no such zone', file=sys.stderr); sys.exit(3)",
            "code 3. It said: no such zone",
        ),
        ("os.kill(os.getpid(), 9)", "was killed by signal 9"),
        ("print('hello')", "no reports document"),
        ("print('{\"v\": 1}')", "reports"),
        ('print(\'{"v": 9, "reports": []}\')', "version 9"),
        ('print(\'{"reports": [{"id": "a", "pool": "p", "state": "happy"}]}\')', "happy"),
        ("sys.stdin.read(); time.sleep(60)", "did not end within 0.5 s"),
        ("sys.stdout.write('x' * 5_000_000); time.sleep(60)", "wrote more than 4194304 bytes"),
    ],
)
async def test_a_bad_program_is_named_with_what_it_did(tmp_path: Path, body: str, said: str) -> None:
    path = program(tmp_path, body)
    slow = body.startswith("sys.stdin.read")
    before = time.monotonic()
    with pytest.raises(PenstockError) as error:
        await ExecLauncher(settings(path), timeout_s=0.5 if slow else 20.0).reports()
    assert error.value.code == "launcher_failed"
    assert path in error.value.message
    assert "'reports'" in error.value.message
    assert said in error.value.message
    assert time.monotonic() - before < 10


async def test_what_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    path = program(
        tmp_path,
        "import subprocess; c = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{c.pid}}')\ntime.sleep(60)",
    )
    with pytest.raises(PenstockError, match="did not end"):
        await ExecLauncher(settings(path), timeout_s=1.0).reports()
    pids = [int(pid) for pid in note.read_text().split()]
    await until(lambda: not any(map(process_is_there, pids)))


async def test_what_it_leaves_running_does_not_hold_the_call_up(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    path = program(
        tmp_path,
        "import subprocess; c = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(note)!r}, 'w').write(str(c.pid)); print('{{\"reports\": []}}')",
    )
    before = time.monotonic()
    assert await ExecLauncher(settings(path)).reports() == {}
    assert time.monotonic() - before < 10
    os.kill(int(note.read_text()), signal.SIGKILL)  # it lives: else this raises


async def test_a_missing_program_and_a_missing_setting_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PenstockError, match="cannot be started: No such file"):
        await ExecLauncher(settings(str(tmp_path / "none"))).reports()
    with pytest.raises(PenstockError) as error:
        ExecLauncher(Settings())
    assert error.value.param == "autoscaler.script"


async def test_stale_orders_never_reach_the_program(tmp_path: Path) -> None:
    path = program(tmp_path, f"open({str(tmp_path / 'calls')!r}, 'a').write('x')")
    launcher = ExecLauncher(settings(path))
    await launcher.apply(orders(epoch=5))
    with pytest.raises(PenstockError) as error:
        await launcher.apply(orders(epoch=4))
    assert error.value.code == "stale_orders"
    assert (tmp_path / "calls").read_text() == "x"
