"""Helpers for the agent's tests: orders as a leader writes them, agents as processes, and what of theirs runs."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from autoscaler.agent.processes import workers_of
from dispatch import keys
from dispatch.scale_store import ScaleStore
from dispatch.scaling import HostReport, Launch, LaunchReport, Leadership, Orders, PoolOrders

PATIENCE_S = 20.0
MODEL = "demo"
SIM = {"engine": "sim", "model": MODEL}


async def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for what a function, or what it awaits, says is so; what it said."""
    deadline = time.monotonic() + patience_s
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        await asyncio.sleep(0.02)


class Leader:
    """Gives orders to one group, as the autoscaler does."""

    def __init__(self, redis: Redis, group: str = "main") -> None:
        self.redis = redis
        self.store = ScaleStore(redis)
        self.group = group
        self.leadership: Leadership | None = None

    async def order(self, *launches: Launch, retiring: tuple[str, ...] = ()) -> int:
        """These and no others; the epoch."""
        self.leadership = await self.store.lead(self.group, "leader", 60_000)
        pools = (PoolOrders("p", MODEL, launches, retiring),)
        orders = Orders(self.group, self.leadership.epoch, pools)
        assert await self.store.order(self.leadership, self.group, orders, [], keep=100)
        return orders.epoch

    async def next_epoch(self) -> None:
        """As if another one had led in between."""
        await self.store.resign(self.group, "leader")

    async def counts_from(self, epoch: int) -> None:
        """The next one to lead gets the epoch after this one, as if its Redis had only seen so many."""
        await self.redis.hset(keys.scale_leader(self.group), mapping={"id": "", "epoch": epoch, "until": 0})

    async def host(self, name: str) -> HostReport | None:
        return next((host for host in await self.store.hosts() if host.host == name), None)

    async def report(self, host: str, launch: str) -> LaunchReport | None:
        said = await self.host(host)
        return next((r for r in said.launches if r.id == launch), None) if said else None


def launch(name: str, host: str, need_bytes: int = 0, **worker: str) -> Launch:
    return Launch(name, "p", {**SIM, **worker}, host, need_bytes)


def pids_of(host: str) -> dict[str, int]:
    """The workers of a host, by launch."""
    return {name: process.pid for name, process in workers_of(host).items()}


def members_of(session: int) -> list[int]:
    """All processes of a session."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(path.name))
    return found


class AgentProcess:
    """`penstock agent` as a person starts it."""

    def __init__(self, redis_url: str, folder: Path, host: str, **settings: str) -> None:
        self.host = host
        self._log = folder / f"{host}.log"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")},
            "PENSTOCK_REDIS__URL": redis_url,
            "PENSTOCK_AGENT__HOST": host,
            "PENSTOCK_AGENT__STATE_DIR": str(folder / "state"),
            "PENSTOCK_AGENT__POLL_S": "0.2",
            "PENSTOCK_AGENT__REPORT_S": "0.2",
            "PENSTOCK_AGENT__MAX_WORKERS": "8",
            **{f"PENSTOCK_{name}": value for name, value in settings.items()},
        }
        self.process = self._start()

    def _start(self, *flags: str) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "penstock", "agent", *flags], env=self._environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def again(self) -> None:
        self.process = self._start()

    def stop_workers(self) -> int:
        return self._start("--stop-workers").wait(PATIENCE_S)

    def said(self) -> str:
        return self._log.read_text()

    def clean_up(self) -> None:
        """Nothing of it is left, whatever a test came to."""
        if self.process.poll() is None:
            self.kill()
        end_workers(self.host)


def end_workers(host: str) -> None:
    """SIGKILL for all of a host; returns when they are gone: the next test's agent would take them over."""
    deadline = time.monotonic() + PATIENCE_S
    while pids := pids_of(host):
        assert time.monotonic() < deadline, f"{pids} do not end"
        for pid in pids.values():
            for member in members_of(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
        time.sleep(0.01)
