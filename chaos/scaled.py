"""The part of the house that scales itself: autoscalers, agents, one pool; set up, brought to rest after healing, ended.

Never here: faults, what is written down of the pool meanwhile (pool.py, scale_watch.py), judgement.
"""

import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from chaos.asks import SIM
from chaos.house import AGENT, AUTOSCALER, ROOT
from chaos.pool import MARK, POOL, PoolWatch, bounds_of, others
from chaos.scale_watch import ScaleWatch
from chaos.scene import AWAY, Scene
from dispatch.fleet import Fleet
from dispatch.scale_store import ScaleStore
from dispatch.scaling import LaunchState
from dispatch.states import WorkerState

AUTOSCALERS, HOSTS = 3, 2
LEASE_S = 2.0
SECRET = "rings in storms alone"
FINALLY = 2
"""How many workers agents must run in the end, after healing."""
_SKEWS_S = (0, 3600)
_STEADY_LOOKS = 4
_LED = re.compile(rb'"lead".*')


@dataclass
class Scaled:
    """Autoscalers, agents and their pool."""

    scene: Scene
    watch: PoolWatch
    scale: ScaleWatch
    reaper: asyncio.subprocess.Process

    @classmethod
    async def start(cls, scene: Scene, shared: Mapping[str, str], mark: str) -> "Scaled":
        """Start it; nobody of the pool is there yet."""
        house, folder = scene.house, scene.house.folder
        reaper = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "chaos.reaper", mark, stdin=asyncio.subprocess.PIPE, cwd=ROOT, start_new_session=True
        )
        common = {
            **shared,
            MARK: mark,
            "PENSTOCK_AGENT__SECRET": SECRET,
            "PENSTOCK_AUTOSCALER__KILL_AFTER_S": "4",
            "PENSTOCK_WORKER__SIM_FAULTS": "true",
            "PENSTOCK_WORKER__PROBE_AFTER_S": "2",
            "PENSTOCK_RUNTIME_DIR": str(folder / "locks"),
        }
        scaling = {
            "PENSTOCK_AUTOSCALER__POOLS": json.dumps({POOL: _pool(others(house))}),
            "PENSTOCK_AUTOSCALER__TICK_S": "0.5",
            "PENSTOCK_AUTOSCALER__LEASE_S": f"{LEASE_S:g}",
        }
        for n in range(AUTOSCALERS):
            await house.autoscaler(f"autoscaler-{n}", {**common, **scaling})
        agents = {}
        for n in range(HOSTS):
            # An agent takes over whatever runs under its host's name: another run on this machine must have other names.
            host = agents[f"agent-{n}"] = f"host-{n}-{mark[:6]}"
            own = {
                "PENSTOCK_AGENT__HOST": host,
                "PENSTOCK_AGENT__POLL_S": "2",
                "PENSTOCK_AGENT__REPORT_S": "0.5",
                "PENSTOCK_AGENT__STATE_DIR": str(folder / f"state-{host}"),
                "PENSTOCK_AGENT__FAKE_GPUS": "A10=24,A10=24",
                "CHAOS_CLOCK_SKEW_S": str(_SKEWS_S[n % len(_SKEWS_S)]),
            }
            await house.agent(f"agent-{n}", {**common, **own})
        watch = PoolWatch(house, scene.record, mark, {host: role for role, host in agents.items()})
        return cls(scene, watch, ScaleWatch(scene, LEASE_S, list(agents.values()), SECRET), reaper)

    async def close(self) -> None:
        """Whatever is left of it is killed."""
        assert self.reaper.stdin is not None
        self.reaper.stdin.close()
        await self.reaper.wait()

    async def until_standing(self, patience_s: float) -> None:
        """Wait until somebody leads, both hosts have reported, and the pool's first worker is ready."""
        give_up_at = time.monotonic() + patience_s
        while True:
            with contextlib.suppress(*AWAY):
                redis = await self.scene.redis()
                store = ScaleStore(redis)
                leads = (await store.leader("main")).leads
                pool = [b for b in await Fleet(redis).workers() if b.pool == POOL and b.state is WorkerState.READY]
                if leads and len(await store.hosts()) == HOSTS and pool:
                    return
            if time.monotonic() > give_up_at:
                raise SystemExit("chaos: no pool came up; see the logs of the autoscalers and agents")
            await asyncio.sleep(0.2)

    async def until_reached(self, patience_s: float) -> None:
        """Ask for so many workers, and wait until orders, reports, heartbeats and processes agree for a while; write it down."""
        began = time.monotonic()
        steady, seen = 0, None
        while time.monotonic() - began < patience_s and steady < _STEADY_LOOKS:
            with contextlib.suppress(*AWAY):
                async with asyncio.timeout(5):
                    seen = await self._agreed()
                steady = steady + 1 if seen["agreed"] else 0
            await asyncio.sleep(0.4)
        self.scene.record("reached", wanted=FINALLY, took_s=round(time.monotonic() - began, 1), **(seen or {"agreed": False}))

    async def end(self, patience_s: float) -> None:
        """End autoscalers, then agents, then the agents' workers as an operator would; write down who is left."""
        house = self.scene.house
        for kind in (AUTOSCALER, AGENT):
            codes = await asyncio.gather(*(house.end(role, patience_s) for role in house.of(kind)))
            self.scene.record("ended", kind=kind, codes=codes)
        for role in house.pool.values():
            role.told_to_end = True
        stopping = (house.once(role, "--stop-workers", patience_s=patience_s) for role in house.of(AGENT))
        self.scene.record("ended", kind="stop-workers", codes=await asyncio.gather(*stopping))
        self.watch.look()
        left = [{"pid": m.process.pid, "launch": m.launch, "command": m.command[:200]} for m in self.watch.marked()]
        self.scene.record("left", processes=left)
        for role in house.of(AUTOSCALER):
            for line in _LED.findall(role.log.read_bytes()):
                self._note_led(role.name, line)

    def _note_led(self, role: str, line: bytes) -> None:
        epoch, who = re.search(rb'"epoch"\s*:\s*(\d+)', line), re.search(rb'"autoscaler"\s*:\s*"([^"]+)"', line)
        if epoch and who:
            self.scene.record("led", role=role, epoch=int(epoch[1]), who=who[1].decode())

    async def _agreed(self) -> dict[str, object]:
        redis = await self.scene.redis()
        store = ScaleStore(redis)
        await store.change_override(POOL, lambda _: bounds_of(f"{FINALLY}..{FINALLY}", self.scene.house))
        orders = await store.orders("main")
        launches = orders.launches()
        reports = {r.id: r.state.value for host in await store.hosts() for r in host.launches}
        ready = sorted({b.launch for b in await Fleet(redis).workers() if b.pool == POOL and b.state is WorkerState.READY})
        procs = self.watch.look()
        agreed = (
            len(launches) == FINALLY
            and not any(pool.retiring for pool in orders.pools)
            and reports == dict.fromkeys(launches, LaunchState.RUNNING.value)
            and procs.keys() == launches.keys()
            and all(len(pids) == 1 for pids in procs.values())
            and ready == sorted(launches)
        )
        ordered = {launch.id: launch.host for launch in launches.values()}
        return {"agreed": agreed, "ordered": ordered, "reports": reports, "procs": procs, "ready": ready}


def _pool(others: int) -> dict[str, object]:
    worker = {"engine": "sim", "slots": "8", "kv_tokens": "500", "sim_gpu": "A10"}
    return {
        "model": SIM,
        "min": 1 + others,
        "max": 4 + others,
        "policies": ["queue_delay", "request_count"],
        "target_s": 2,
        "requests_per_worker": 5,
        "down_window_s": 5,
        "idle_timeout_s": 3,
        "worker": worker,
    }
