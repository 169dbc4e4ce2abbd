"""A run whose fleet is scaled: each simulated second a scaler sees what the autoscaler would see, and workers come and go.

A worker that is ordered costs from that moment, works after its cold start, drains before it goes, and is taken back while it
drains if more are needed. Never here: how many there should be (autoscaler/policy.py), the scalers (scalers.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from autoscaler.seen import Phase, Seen, SeenWorker
from autoscaler.speed import work_tokens_per_s
from autoscaler.victims import victims
from penstock.simulator.batching import Batch, Job
from penstock.simulator.fleet import Member
from penstock.simulator.simulation import Simulation
from penstock.simulator.state import Conditions, Event, Outcome, Worker, load_of
from penstock.simulator.trace import Arrival

_BEGIN_S = 1_800_000_000.0
"""Redis's clock when a run begins: schedules need a day."""

_LATELY = 20


class Scaler(Protocol):
    """What says, once a tick, how many workers there should be."""

    def desired(self, seen: Seen) -> tuple[int, str]:
        """The number, and why: "" while nothing changes."""
        ...


@dataclass(frozen=True, slots=True)
class Cold:
    """A start: how long it takes, from the order to the first grant."""

    start_s: float = 20.0
    tick_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Tick:
    """What was at one look, and what was decided: one point of the picture."""

    at_s: float
    waiting: int
    oldest_wait_s: float
    ready: int
    coming: int
    desired: int
    reason: str


@dataclass(frozen=True, slots=True)
class Scaled:
    """What came of a run. `delays_s`: from arrival to the first grant, by request. `gpu_s`: what all workers cost."""

    outcome: Outcome
    delays_s: Sequence[float]
    ticks: Sequence[Tick]
    gpu_s: float
    starts: int
    turns: int


class ScaledSimulation(Simulation):
    """`fleet` is the most there can be, in the order in which they are started."""

    def __init__(
        self, trace: Sequence[Arrival], fleet: Sequence[Member], strategy: str, conditions: Conditions, scaler: Scaler, cold: Cold
    ) -> None:
        super().__init__(trace, fleet, strategy, conditions)
        self._scaler = scaler
        self._cold = cold
        self._phases: list[Phase | None] = [None] * len(fleet)
        self._since_s = [0.0] * len(fleet)
        self._spells = [0] * len(fleet)
        self._begun_at = [math.nan] * len(trace)
        self._ticks: list[Tick] = []
        self._gpu_s = 0.0
        self._starts = 0
        self._arrived = 0
        for place in range(len(fleet)):
            self.unpark(place)
        self._handlers[Event.TICK] = self._tick
        self._handlers[Event.STARTED] = self._started
        self.at(0.0, Event.TICK, 0)

    def scale(self) -> Scaled:
        """To the last request's end."""
        outcome = self.run()
        end_s = outcome.ended_at_s
        for place, phase in enumerate(self._phases):
            if phase is not None:
                self._gpu_s += max(0.0, end_s - self._since_s[place])
        delays = [begun_s - job.arrival.at_s for begun_s, job in zip(self._begun_at, self.jobs, strict=True)]
        return Scaled(outcome, delays, self._ticks, self._gpu_s, self._starts, _turns([tick.desired for tick in self._ticks]))

    def _grant(self, job: Job, place: int, now: float) -> None:
        if math.isnan(self._begun_at[job.index]):
            self._begun_at[job.index] = now
        super()._grant(job, place, now)

    def _tick(self, now: float, _: int, __: int) -> None:
        for place, phase in enumerate(self._phases):
            if phase is Phase.DRAINING and not self.workers[place].load.held:
                self._stop(place, now)
        seen = self._seen(now)
        desired, reason = self._scaler.desired(seen)
        ready, coming = seen.count(Phase.READY), seen.count(Phase.STARTING)
        self._ticks.append(Tick(now, seen.waiting, seen.oldest_wait_s, ready, coming, desired, reason))
        self._reconcile(seen, desired - ready - coming, now)
        self.at(now + self._cold.tick_s, Event.TICK, 0)

    def _seen(self, now: float) -> Seen:
        there = tuple(self._seen_worker(place, phase, now) for place, phase in enumerate(self._phases) if phase is not None)
        return Seen(
            at_s=_BEGIN_S + now,
            waiting=len(self._line),
            waiting_tokens=sum(job.cost for job in self._line),
            oldest_wait_s=now - self._line[0].arrival.at_s if self._line else 0.0,
            running=sum(worker.held for worker in there),
            workers=there,
            tokens_per_s_each=self._speed(now),
            cold_start_s=(self._cold.start_s, self._cold.start_s) if self._starts else None,
        )

    def _speed(self, now: float) -> float:
        """By the mix of the newest requests, as it is observed of real ones."""
        while self._arrived < len(self.jobs) and self.jobs[self._arrived].arrival.at_s <= now:
            self._arrived += 1
        lately = self.jobs[max(0, self._arrived - _LATELY) : self._arrived]
        cost = sum(job.cost for job in lately)
        share = sum(job.arrival.prompt_tokens for job in lately) / cost if cost else None
        load = self.workers[0].load
        return work_tokens_per_s(load.weight, load.prefill_weight, share)

    def _seen_worker(self, place: int, phase: Phase, now: float) -> SeenWorker:
        load = self.workers[place].load
        return SeenWorker(
            launch=str(place),
            phase=phase,
            age_s=now - self._since_s[place],
            held=load.held,
            left_tokens=load.used_tokens,
            tokens_per_s=load.weight,
        )

    def _reconcile(self, seen: Seen, more: int, now: float) -> None:
        """Who drains is taken back first, the one with the most left to do; then others are started."""
        if more < 0:
            for launch in victims(seen.workers, -more):
                self._retire(int(launch), now)
            return
        draining = sorted((w.left_tokens, int(w.launch)) for w in seen.workers if w.phase is Phase.DRAINING)
        for _, place in draining[::-1][:more]:
            self._phases[place] = Phase.READY
            self._park(place, now)
        free = [place for place, phase in enumerate(self._phases) if phase is None]
        for place in free[: more - len(draining[::-1][:more])]:
            self._start(place, now)

    def _start(self, place: int, now: float) -> None:
        self._starts += 1
        self._spells[place] += 1
        self._phases[place] = Phase.STARTING
        self._since_s[place] = now
        w = self.workers[place]
        w.incarnation += 1
        w.batch = Batch(w.member.gpu)
        w.load = load_of(w.member)
        self.at(now + self._cold.start_s, Event.STARTED, place, self._spells[place])

    def _started(self, now: float, place: int, spell: int) -> None:
        if self._spells[place] == spell and self._phases[place] is Phase.STARTING:
            self._phases[place] = Phase.READY
            self._park(place, now)

    def _park(self, place: int, now: float) -> None:
        w: Worker = self.workers[place]
        w.parked = True
        self.put(place, replace(w.load, turns=self.turn))
        self.room_grew(place, now)

    def _retire(self, place: int, now: float) -> None:
        self.unpark(place)
        if self._phases[place] is Phase.READY and self.workers[place].load.held:
            self._phases[place] = Phase.DRAINING
        else:
            self._stop(place, now)

    def _stop(self, place: int, now: float) -> None:
        self._gpu_s += now - self._since_s[place]
        self._phases[place] = None


def _turns(numbers: Sequence[int]) -> int:
    """How often it went up after down, or down after up."""
    steps = [b > a for a, b in pairwise(numbers) if a != b]
    return sum(1 for a, b in pairwise(steps) if a != b)
