"""Processes that are started, watched, drained; and when one that died is worth another start."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from autoscaler.launchers.base import Exit, Restarts
from autoscaler.launchers.children import LocalProcesses

READY_THEN_DRAIN = """
import signal, sys, time
def drain(*_):
    print("drained", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
print("ready", flush=True)
time.sleep(60)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"


def ended(code: int = 1, lived_s: float = 0.1) -> Exit:
    return Exit("worker-1", 1, code, lived_s)


def delays(*ends: Exit) -> list[float | None]:
    restarts, found = Restarts(), []
    for end in ends:
        restarts = restarts.after(end)
        found.append(restarts.delay_s(end))
    return found


def test_restarts_back_off_and_give_up() -> None:
    assert delays(*[ended()] * 7) == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, None]


def test_a_healthy_life_forgets_the_failures_before() -> None:
    assert delays(ended(), ended(), ended(lived_s=60), ended()) == [0.5, 1.0, 0.5, 1.0]


def test_a_usage_error_is_not_tried_again() -> None:
    assert delays(ended(code=2)) == [None]


async def until(processes: LocalProcesses, name: str, word: str) -> None:
    while word not in processes.tail(name):
        assert processes.alive(name), processes.tail(name)
        await asyncio.sleep(0.01)


async def start(processes: LocalProcesses, name: str, code: str) -> int:
    launched = await processes.start(name, [sys.executable, "-c", code], os.environ)
    await until(processes, name, "ready")
    return launched.pid


@pytest.mark.parametrize(("code", "exit_code", "last"), [(READY_THEN_DRAIN, 0, "drained"), (DEAF, -9, "ready")])
async def test_stop_drains_and_then_kills(code: str, exit_code: int, last: str, tmp_path: Path) -> None:
    processes = LocalProcesses(tmp_path)
    pid = await start(processes, "one", code)
    await processes.stop("one", timeout_s=5 if exit_code == 0 else 0.2)
    assert not processes.alive("one")
    end = await anext(processes.exits())
    assert (end.name, end.pid, end.code) == ("one", pid, exit_code)
    assert processes.tail("one")[-1] == last


async def test_a_child_gets_no_ctrl_c_of_the_terminal(tmp_path: Path) -> None:
    processes = LocalProcesses(tmp_path)
    pid = await start(processes, "one", READY_THEN_DRAIN)
    assert os.getpgid(pid) != os.getpgid(0)
    processes.kill("one")
    await processes.gone("one")
