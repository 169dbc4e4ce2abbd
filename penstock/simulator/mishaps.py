"""What goes wrong in a run: workers die or are frozen, and what the laws of the queue make of it.

A worker that was silent for 3 s is passed over; a grant it did not begin in 2 s goes back to the head of the line; its leases
are over 10 s after its last heartbeat, and what it held goes on elsewhere, behind what was already said.
Never here: what goes right (simulation.py).
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from dispatch import scores
from dispatch.rules import QueueRules
from dispatch.scores import Load
from penstock.failures import Failure
from penstock.simulator.batching import Batch, Job
from penstock.simulator.state import Conditions, Event, Worker, load_of

_MOST_MOVES = 30
_RULES = QueueRules()
_GRANT_S, _LEASE_S, _SEEN_S = _RULES.grant_ms / 1000, _RULES.lease_ms / 1000, _RULES.worker_seen_ms / 1000


class World(Protocol):
    """What a mishap needs of the run it befalls (simulation.py)."""

    conditions: Conditions
    rng: random.Random
    beats: bool
    workers: Sequence[Worker]
    jobs: Sequence[Job]
    moved: int
    turn: float

    def at(self, at_s: float, kind: Event, place: int, tag: int = 0) -> None: ...
    def arrive(self, job: Job, now: float, *, front: bool = False) -> None: ...
    def room_grew(self, place: int, now: float) -> None: ...
    def put(self, place: int, load: Load) -> None: ...
    def unpark(self, place: int) -> None: ...
    def begin(self, now: float, place: int, index: int) -> None: ...
    def plan(self, place: int) -> None: ...


class Mishaps:
    """The handlers of the events that nobody wanted."""

    def __init__(self, simulation: World) -> None:
        self._sim = simulation
        self._orphans: dict[tuple[int, int], list[Job]] = {}
        self._places = {w.member.name: place for place, w in enumerate(simulation.workers)}
        for i, trouble in enumerate(simulation.conditions.troubles):
            simulation.at(trouble.at_s, Event.TROUBLE, i)

    def handlers(self) -> Mapping[int, Callable[[float, int, int], None]]:
        """By event."""
        return {
            Event.TROUBLE: self._trouble,
            Event.THAW: self._thaw,
            Event.BACK: self._back,
            Event.UNBEGUN: self._unbegun,
            Event.UNSEEN: self._unseen,
            Event.LAPSE: self._lapse,
        }

    @staticmethod
    def watch(simulation: World, job: Job, now: float) -> None:
        """A grant to a silent worker will be looked at when its short lease is over."""
        simulation.at(now + _GRANT_S, Event.UNBEGUN, job.index, job.attempt)

    def _trouble(self, now: float, i: int, _: int) -> None:
        sim = self._sim
        trouble = sim.conditions.troubles[i]
        if trouble.every:
            sim.at(now + trouble.at_s, Event.TROUBLE, i)
        able = [place for place, w in enumerate(sim.workers) if not w.silent(now)]
        if trouble.worker:
            able = [place for place in able if place == self._places[trouble.worker]]
        if able:
            place = able[sim.rng.randrange(len(able))]
            self._silence(place, now)
            (self._kill if trouble.kind == "kill" else self._freeze)(place, now, trouble.span_s)

    def _silence(self, place: int, now: float) -> None:
        sim, w = self._sim, self._sim.workers[place]
        w.spell += 1
        if not sim.beats:
            period_s = sim.conditions.heartbeat_s
            w.beat_at_s += math.floor((now - w.beat_at_s) / period_s) * period_s
        for job in w.inbox.values():
            self.watch(sim, job, now)
        sim.at(max(now, w.beat_at_s + _SEEN_S), Event.UNSEEN, place, w.spell)
        sim.at(max(now, w.beat_at_s + _LEASE_S), Event.LAPSE, place, w.spell)

    def _kill(self, place: int, now: float, span_s: float) -> None:
        w = self._sim.workers[place]
        w.alive = False
        w.batch.abandon(now)
        w.plan = math.inf
        self._orphans[place, w.spell] = list(w.begun.values())
        w.begun = {}
        self._sim.at(now + span_s, Event.BACK, place)

    def _freeze(self, place: int, now: float, span_s: float) -> None:
        w = self._sim.workers[place]
        w.frozen_until_s = now + span_s
        w.batch.freeze(now, span_s)
        self._sim.plan(place)
        self._sim.at(w.frozen_until_s, Event.THAW, place)

    def _unseen(self, now: float, place: int, spell: int) -> None:
        w = self._sim.workers[place]
        if w.spell == spell and w.silent(now):
            self._sim.unpark(place)

    def _unbegun(self, now: float, index: int, attempt: int) -> None:
        """A grant that nobody took up; its worker is unparked until it is seen again."""
        job = self._sim.jobs[index]
        w = self._sim.workers[job.worker]
        if job.attempt != attempt or w.inbox.pop(index, None) is None:
            return
        if w.silent(now):
            self._sim.unpark(job.worker)
        self._take_back(job, now)

    def _lapse(self, now: float, place: int, spell: int) -> None:
        """The leases of a worker that has been silent for so long are over."""
        w = self._sim.workers[place]
        lost = self._orphans.pop((place, spell), [])
        if w.spell == spell and w.alive and w.silent(now):
            w.batch.abandon(now)
            self._sim.plan(place)
            lost, w.begun = list(w.begun.values()), {}
        for job in reversed(lost):
            self._take_back(job, now)

    def _take_back(self, job: Job, now: float) -> None:
        w = self._sim.workers[job.worker]
        if w.incarnation == job.incarnation:
            self._off(w, job)
        self._sim.moved += 1
        if self._sim.moved > _MOST_MOVES * len(self._sim.jobs):
            raise Failure(
                "the run comes to no end",
                f"workers die or freeze so often that the requests were moved {_MOST_MOVES} times each",
                "Let it happen less often, or to fewer of them",
            )
        self._sim.arrive(job, now, front=True)

    def _off(self, w: Worker, job: Job) -> None:
        load = w.load
        self._sim.put(
            job.worker,
            replace(
                load,
                used_tokens=load.used_tokens - job.cost,
                held=load.held - 1,
                prefill_tokens=load.prefill_tokens - (job.arrival.prompt_tokens if job.prefilling else 0),
            ),
        )

    def _thaw(self, now: float, place: int, _: int) -> None:
        w = self._sim.workers[place]
        if w.silent(now):
            return
        stalled, w.stalled = w.stalled, []
        for index, attempt in stalled:
            if self._sim.jobs[index].attempt == attempt:
                self._sim.begin(now, place, index)
        self._seen_again(place, now)

    def _back(self, now: float, place: int, _: int) -> None:
        """A new incarnation: empty, with none of the old one's leases."""
        w = self._sim.workers[place]
        w.incarnation += 1
        w.alive = True
        w.batch = Batch(w.member.gpu)
        w.load = replace(load_of(w.member), turns=scores.turns(0.0, self._sim.turn, w.load.weight))
        self._seen_again(place, now)

    def _seen_again(self, place: int, now: float) -> None:
        w = self._sim.workers[place]
        w.parked = True
        w.beat_at_s = now
        w.busy_s = w.batch.busy_until(now)
        self._sim.put(place, w.load)
        self._sim.room_grew(place, now)
