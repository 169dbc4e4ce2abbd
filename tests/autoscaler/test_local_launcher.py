"""Workers as children: one that is no longer ordered while its process is being made ends all the same."""

import asyncio
import os
import time
from pathlib import Path

from autoscaler.launchers.children import LocalProcesses
from autoscaler.launchers.local import LocalLauncher
from dispatch.scaling import Launch, LaunchState, Orders, PoolOrders
from dispatch.settings import Settings


async def test_one_unordered_while_it_is_started_leaves_no_process(tmp_path: Path, server_url: str) -> None:
    settings = Settings.model_validate({"redis": {"url": server_url}, "worker": {"engine": "sim", "drain_timeout_s": 0.1}})
    processes = LocalProcesses(tmp_path)
    launcher = LocalLauncher(processes, os.environ, settings)
    watching = asyncio.create_task(launcher.run(lambda end: None))
    await launcher.apply(Orders("g", 1, (PoolOrders("p", "demo", (Launch("l-1", "p"),)),)))
    assert (await launcher.reports())["l-1"].state is LaunchState.STARTING
    await launcher.apply(Orders("g", 1))
    deadline = time.monotonic() + 20
    while await launcher.reports() or launcher._tasks:  # also what is still being made
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert not processes.alive("worker-1")
    watching.cancel()
    await asyncio.wait({watching})


async def test_one_that_cannot_be_started_is_told_and_blocks_its_pool(tmp_path: Path, server_url: str) -> None:
    settings = Settings.model_validate({"redis": {"url": server_url}})
    launcher = LocalLauncher(LocalProcesses(tmp_path), os.environ, settings)
    await launcher.apply(Orders("g", 1, (PoolOrders("p", "demo", (Launch("l-1", "p", {"sim_gpu": "a\0b"}),)),)))
    deadline = time.monotonic() + 5
    while (await launcher.reports())["l-1"].state is not LaunchState.CRASH_LOOP:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert "cannot be started" in await launcher.unplaceable("p", 0)
