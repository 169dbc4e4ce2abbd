"""The nemesis: a schedule of faults that a seed fixes wholly, and its execution.

Never here: what a fault is (faults.py).
"""

import asyncio
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from chaos.faults import FAULTS, Fault, Undo
from chaos.house import AGENT, AUTOSCALER
from chaos.pool import BOUNDS
from chaos.scene import AWAY, Scene

_UNDO_S = 45.0


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault at its time. `pick` in 0..1 chooses among those that can be hit then."""

    at_s: float
    name: str
    pick: float
    for_s: float


def plan(
    seed: int,
    seconds: float,
    topology: str,
    *,
    gap_s: float,
    lease_s: float,
    only: Collection[str] = (),
    scaled: bool = False,
) -> list[Strike]:
    """The schedule: the same for the same arguments, always."""
    rng = random.Random(f"{seed} nemesis {topology}")
    here = {n: f for n, f in FAULTS.items() if topology in f.topologies and (scaled or not f.scaled)}
    names = [n for n, f in here.items() if f.least_s <= seconds and (not only or n in only)]
    weights = [FAULTS[n].weight for n in names]
    strikes, at_s, server_free_s = [], gap_s, 0.0
    while at_s < seconds:
        name = rng.choices(names, weights)[0]
        fault = FAULTS[name]
        for_s = rng.uniform(*fault.for_s) * (lease_s if fault.in_leases else 1.0)
        pick = rng.random()
        # A server that is struck without end accepts nothing: there would be nothing to lose.
        if not fault.alone or at_s >= server_free_s:
            strikes.append(Strike(round(at_s, 2), name, pick, round(for_s, 2)))
            if fault.alone:
                server_free_s = at_s + for_s + 8.0
        at_s += rng.uniform(0.3, 1.7) * gap_s
    return strikes


class Nemesis:
    """Carries a schedule out."""

    def __init__(self, scene: Scene, strikes: Sequence[Strike]) -> None:
        self._scene = scene
        self._strikes = strikes
        self._healing = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Strike on time, until the schedule is over. `heal` afterwards."""
        started = time.monotonic()
        for n, strike in enumerate(self._strikes):
            await asyncio.sleep(max(0.0, started + strike.at_s - time.monotonic()))
            task = asyncio.create_task(self._strike(n, strike))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def heal(self) -> None:
        """Undo everything that still lasts."""
        self._healing.set()
        await asyncio.gather(*self._tasks)

    async def _strike(self, n: int, strike: Strike) -> None:
        fault = FAULTS[strike.name]
        target = self._target(fault, strike.pick)
        if target is None:
            self._scene.record("fault", n=n, name=strike.name, phase="skip", target="", why="nobody to hit")
            return
        self._scene.record("fault", n=n, name=strike.name, phase="do", target=target, for_s=strike.for_s)
        undo: Undo = None
        try:
            undo = await fault.do(self._scene, target, strike.for_s)
        except AWAY as error:
            self._scene.record("fault", n=n, name=strike.name, phase="failed", target=target, why=type(error).__name__)
        if undo is not None:
            try:
                async with asyncio.timeout(strike.for_s):
                    await self._healing.wait()
            except TimeoutError:
                pass
            async with asyncio.timeout(_UNDO_S):
                await undo()
        self._scene.record("fault", n=n, name=strike.name, phase="undone", target=target)

    def _target(self, fault: Fault, pick: float) -> str | None:
        house = self._scene.house
        if fault.on in ("", "server"):
            return fault.on or "all"
        if fault.on == "bounds":
            return BOUNDS[int(pick * len(BOUNDS))]
        autoscalers = house.of(AUTOSCALER)
        candidates = {
            "worker": house.workers,
            "gateway": house.gateways,
            "engine": [r for r in house.workers if r.children()],
            "role": house.on_roads,
            "autoscaler": autoscalers,
            "leader": [r for r in autoscalers if r.name == house.leading] or autoscalers,
            "agent": house.of(AGENT),
        }[fault.on]
        names = [r.name for r in candidates if r.pid]
        return names[int(pick * len(names))] if names else None
