"""Stand-in hands: workers that are nothing but heartbeats, and a clock that is turned by hand."""

from collections.abc import Mapping
from dataclasses import replace

from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.reports import Heartbeat
from dispatch.scaling import LaunchReport, LaunchState, Orders
from dispatch.states import WorkerState

TTL_MS = 600_000  # the server's clock is the real one: who falls silent here is made to


class Clock:
    """Redis's clock, in milliseconds."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


class Hands:
    """A launcher whose workers beat `ready` so long after they were ordered; those who never start are named in `broken`."""

    names_itself = False

    def __init__(self, fleet: Fleet, clock: Clock, *, cold_start_s: float = 5.0, model: str = "m") -> None:
        self.cold_start_s = cold_start_s
        self.applied: list[Orders] = []
        self.running: dict[str, Heartbeat] = {}
        self.held: dict[str, int] = {}
        self.gone: set[str] = set()
        self.crashed: set[str] = set()
        self.full = ""
        self.away = False
        self.asked = 0
        self.started = 0
        self._fleet, self._clock, self._model = fleet, clock, model

    async def apply(self, orders: Orders) -> None:
        self.applied.append(orders)
        ordered = orders.launches()
        for name, launch in ordered.items():
            if name not in self.running and name not in self.crashed and name not in self.gone:
                self.started += 1
                self.running[name] = Heartbeat(
                    id=f"w-{name}", host="h", pid=1, model=self._model, engine="sim", state=WorkerState.LOADING,
                    limit_tokens=1000, slots=4, weight=100.0, held=0, held_tokens=0,
                    started_at_ms=launch.ordered_at_ms, beat_at_ms=self._clock.ms, pool=launch.pool, launch=name,
                )  # fmt: skip
        for name in [n for n in self.running if n not in ordered]:
            del self.running[name]
            await self._fleet.leave(f"w-{name}")

    async def beat(self) -> None:
        """All that run beat once."""
        drains = await self._fleet.drains()
        for name, beat in self.running.items():
            ready = self._clock.ms - beat.started_at_ms >= self.cold_start_s * 1000
            state = WorkerState.LOADING if not ready else WorkerState.DRAINING if name in drains else WorkerState.READY
            held = self.held.get(name, 0)
            self.running[name] = replace(beat, state=state, held=held, held_tokens=100 * held, beat_at_ms=self._clock.ms)
            await self._fleet.beat(self.running[name], TTL_MS)

    async def fall_silent(self) -> None:
        """Redis was away: no heartbeat stands, and all run on."""
        for name in self.running:
            await self._fleet.leave(f"w-{name}")

    async def die(self, name: str) -> None:
        """Its process ends, for good."""
        self.running.pop(name)
        self.gone.add(name)
        await self._fleet.leave(f"w-{name}")

    async def reports(self) -> Mapping[str, LaunchReport]:
        self.asked += 1
        if self.away:
            raise PenstockError("launcher_failed", "The hands do not answer.")
        found = {n: LaunchReport(n, b.pool, LaunchState.RUNNING) for n, b in self.running.items()}
        found |= {n: LaunchReport(n, "p", LaunchState.GONE) for n in self.gone}
        return found | {n: LaunchReport(n, "p", LaunchState.CRASH_LOOP, error="it crashed") for n in self.crashed}

    async def unplaceable(self, pool: str, need_bytes: int) -> str:
        return self.full

    async def close(self) -> None:
        pass
