"""A fleet that scales itself, as processes: server, gateway, autoscalers, an agent on each host, and the agents' workers.

Whatever ends is started again after a second, as systemd does. Never here: what is asked of it, what is made of its history.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.hosts import Hosts, hosts
from dispatch.fleet import Fleet
from dispatch.redis_client import connect
from dispatch.reports import ModelCard
from tests.ports import free_port
from tests.servers import running

MARK = "BENCH_FLEET"  # no setting of ours: an agent hands it on to its workers
_AGAIN_S = 1.0
_GPUS = "A10=24,A10=24"
_SECRET = "for this bench alone"
GIB = 1 << 30


@dataclass
class Slot:
    """One process that is kept running. `starts`: when each incarnation was started, and its pid."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: asyncio.subprocess.Process | None = None
    wanted: bool = True
    starts: list[tuple[float, int]] = field(default_factory=list)
    supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """0: none runs."""
        return self.process.pid if self.process is not None and self.process.returncode is None else 0


@dataclass
class ScaledFleet:
    """All of it. `url` reaches the server from here, `gateway` the gateway."""

    url: str
    gateway: str
    hosts: Hosts
    folder: Path
    mark: str
    slots: dict[str, Slot] = field(default_factory=dict)

    def start(self, name: str, *verb: str, host: str = "", **environment: str) -> Slot:
        """Keep that verb running."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith("PENSTOCK_")}
        prefix = self.hosts.prefix[host] if host else ()
        slot = Slot(
            name,
            (*prefix, sys.executable, "-m", "penstock", *verb),
            {**kept, "HOME": str(self.folder), "TMPDIR": str(self.folder), MARK: self.mark, **environment},
            self.folder / f"{name}.log",
        )
        self.slots[name] = slot
        slot.supervisor = asyncio.create_task(self._supervise(slot), name=f"supervise {name}")
        return slot

    async def stop(self, name: str, patience_s: float = 40.0) -> int:
        """SIGTERM, and its exit code."""
        slot = self.slots[name]
        slot.wanted = False
        if slot.process is not None and slot.pid:
            slot.process.terminate()
            try:
                return await asyncio.wait_for(slot.process.wait(), patience_s)
            except TimeoutError:
                slot.process.kill()
                return await slot.process.wait()
        return 0

    def kill(self, name: str) -> int:
        """SIGKILL; returns the pid it went to, or 0."""
        pid = self.slots[name].pid
        if pid:
            os.kill(pid, signal.SIGKILL)
        return pid

    def living(self) -> dict[int, str]:
        """Every process of this fleet, whoever started it: its command line. The server has no mark and is none of them."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if path.joinpath("stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                    continue
                if f"{MARK}={self.mark}".encode() in path.joinpath("environ").read_bytes().split(b"\0"):
                    found[int(path.name)] = path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def orphans(self) -> dict[int, str]:
        """Those of `living` that are none of the slots' processes, nor their helpers."""
        ours = {slot.pid for slot in self.slots.values()}
        return {pid: command for pid, command in self.living().items() if pid not in ours and "gpu_report" not in command}

    def get(self, path: str) -> Any:
        """JSON of the gateway."""
        with urllib.request.urlopen(self.gateway + path, timeout=10) as reply:
            return json.load(reply)

    def said(self, name: str) -> str:
        """A slot's log."""
        return self.slots[name].log.read_text(errors="replace")

    async def close(self) -> None:
        """Nothing of it is left."""
        for slot in self.slots.values():
            slot.wanted = False
            if slot.supervisor is not None:
                slot.supervisor.cancel()
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for slot in self.slots.values():
            if slot.process is not None:
                await slot.process.wait()

    async def _supervise(self, slot: Slot) -> None:
        while slot.wanted:
            with slot.log.open("ab") as log:
                slot.process = await asyncio.create_subprocess_exec(
                    *slot.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(slot.environment),
                    cwd=self.folder,
                    start_new_session=True,
                )
            slot.starts.append((time.time(), slot.process.pid))
            await slot.process.wait()
            if slot.wanted:
                await asyncio.sleep(_AGAIN_S)


@contextlib.asynccontextmanager
async def scaled_fleet(
    pools: Mapping[str, Mapping[str, Any]],
    *,
    autoscalers: int,
    agents: int,
    cards: Sequence[ModelCard] = (),
    server: str = "redis",
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[ScaledFleet]:
    """Stands, and the gateway is ready; the first worker of each model without a card is on its way. Hosts have two fake GPUs."""
    names = [f"h{number + 1}" for number in range(agents)]
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="penstock-scaled-") as folder, hosts(names) as there:
        listen = ("--port", str(port), "--bind", "127.0.0.1", "--protected-mode", "no")
        bound = (*listen[:3], "127.0.0.1", there.address, *listen[4:]) if there.apart else listen
        with running(server, *bound) as found:
            await _put(found.url, cards)
            fleet = ScaledFleet(found.url, f"http://127.0.0.1:{free_port()}", there, Path(folder), uuid.uuid4().hex)
            common = {
                "PENSTOCK_REDIS__URL": f"redis://{there.address}:{port}/0",
                "PENSTOCK_AGENT__SECRET": _SECRET,
                "PENSTOCK_AUTOSCALER__POOLS": json.dumps(pools),
                **(environment or {}),
            }
            try:
                fleet.start("gateway", "gateway", "--port", fleet.gateway.rpartition(":")[2], **common)
                for number in range(autoscalers):
                    fleet.start(f"autoscaler-{number + 1}", "autoscaler", **common)
                for name in names:
                    own = {
                        "PENSTOCK_AGENT__HOST": name,
                        "PENSTOCK_AGENT__FAKE_GPUS": _GPUS,
                        "PENSTOCK_AGENT__STATE_DIR": str(fleet.folder / f"state-{name}"),
                    }
                    fleet.start(f"agent-{name}", "agent", host=name, **{**common, **own})
                await until(lambda: _answers(fleet.gateway + "/readyz"), "the gateway to be ready", 60)
                yield fleet
            finally:
                await fleet.close()


async def _put(url: str, cards: Sequence[ModelCard]) -> None:
    redis = connect(url)
    for card in cards:
        await Fleet(redis).put_card(card, None)
    await redis.aclose()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


async def until(condition: Callable[[], Any], what: str, patience_s: float) -> Any:
    """Wait for what a function, or what it awaits, says is so."""
    deadline = time.monotonic() + patience_s
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience_s:g} s in vain for {what}")
        await asyncio.sleep(0.05)
