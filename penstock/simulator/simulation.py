"""The events, one after the other: arrivals, grants, steps, heartbeats. Pure: the same seed, the same run.

Never here: the scores (dispatch/scores.py), the order of the parked (meeting.py), the steps (batching.py), what goes wrong
(mishaps.py).
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from dispatch import scores
from dispatch.rules import QueueRules
from dispatch.scores import Load, Need, Strategy
from penstock.simulator.batching import Batch, Job
from penstock.simulator.fleet import Member, cost_of
from penstock.simulator.meeting import FirstToWake, Meeting, Pulling, meeting_of
from penstock.simulator.mishaps import Mishaps
from penstock.simulator.state import Conditions, Event, Outcome, Worker, load_of, memory_of
from penstock.simulator.trace import Arrival

ORACLE = "oracle"
GREEDY = "greedy"
BASELINES = (ORACLE, GREEDY)
_BY_REPORTS = (Strategy.LEAST_LOADED, Strategy.LEAST_LOADED_UTILISATION, Strategy.LEAST_LOADED_WAITING)
_PATIENCE_S = QueueRules().patience_ms / 1000
_WINDOW, _WINDOW_OF_PULL = 64, 32
"""How many of those that wait a worker with new room looks at."""


class Simulation:
    """One strategy on one fleet. What mishaps.py needs of it is public."""

    def __init__(
        self,
        trace: Sequence[Arrival],
        fleet: Sequence[Member],
        strategy: str,
        conditions: Conditions,
        meeting: Meeting | None = None,
    ) -> None:
        self.rng = random.Random(conditions.seed)
        self.conditions = conditions
        self.beats = strategy in _BY_REPORTS  # only there does a heartbeat count
        self.workers: Sequence[Worker] = [Worker(m, load_of(m), Batch(m.gpu)) for m in fleet]
        self.jobs: Sequence[Job] = [Job(i, a, cost_of(a)) for i, a in enumerate(trace)]
        self.moved = 0
        self._wake_s = 0.0 if strategy == ORACLE else conditions.wake_s
        self._meeting = meeting or self._meeting_for(strategy)
        self._pulling = self._meeting if isinstance(self._meeting, Pulling) else None
        self._line: deque[Job] = deque()
        self._events: list[tuple[float, int, int, int, int]] = []
        self._count = 0
        self._grants = 0
        self.turn = 0.0
        self._unended = len(self.jobs)
        self._wake_due = False
        for place, w in enumerate(self.workers):
            self._meeting.put(place, w.load)
            w.beat_at_s = -self.rng.random() * conditions.heartbeat_s
            if self.beats:
                self.at(w.beat_at_s + conditions.heartbeat_s, Event.BEAT, place)
        mishaps = Mishaps(self)
        self._handlers: dict[int, Callable[[float, int, int], None]] = {
            Event.BEGIN: self.begin,
            Event.STEP: self._step,
            Event.BEAT: self._beat,
            Event.WAKE: self._wake,
            **mishaps.handlers(),
        }

    def run(self) -> Outcome:
        """To the last request's end."""
        now = 0.0
        coming = iter(self.jobs)
        following = next(coming, None)
        while self._unended:
            event = self._events[0] if self._events else None
            if following is not None and (event is None or following.arrival.at_s <= event[0]):
                now = following.arrival.at_s
                self.arrive(following, now)
                following = next(coming, None)
            elif event is not None:
                heapq.heappop(self._events)
                now, _, kind, place, tag = event
                self._handlers[kind](now, place, tag)
            else:
                raise RuntimeError(f"{len(self._line)} requests wait and nothing will happen any more")
        return Outcome(
            jobs=self.jobs,
            granted=[w.granted for w in self.workers],
            moved=self.moved,
            most_held=[w.most_used / w.load.limit_tokens for w in self.workers],
            ended_at_s=now,
        )

    def at(self, at_s: float, kind: Event, place: int, tag: int = 0) -> None:
        """It will happen then."""
        self._count += 1
        heapq.heappush(self._events, (at_s, self._count, kind, place, tag))

    def _meeting_for(self, strategy: str) -> Meeting:
        if strategy == GREEDY:
            return FirstToWake(self.rng.randrange)
        return meeting_of(Strategy.WEIGHTED_LEAST_CONNECTIONS if strategy == ORACLE else Strategy(strategy))

    # The two lines

    def arrive(self, job: Job, now: float, *, front: bool = False) -> None:
        """It meets a parked pull, or waits; at the head of the line if it was given back."""
        greedy = isinstance(self._meeting, FirstToWake)
        if not greedy and self._offer(job, now):
            return
        job.queued_at = now
        (self._line.appendleft if front else self._line.append)(job)
        if greedy and not self._wake_due:
            self._wake_due = True
            self.at(now + self._wake_s, Event.WAKE, 0)

    def _offer(self, job: Job, now: float) -> bool:
        session = job.arrival.session or str(job.index)
        place = self._meeting.choose(Need(job.arrival.prompt_tokens, job.cost, session, "", f"{job.index}.{job.attempt}"))
        if place is None:
            return False
        self._grant(job, place, now)
        return True

    def _wake(self, now: float, _: int, __: int) -> None:
        self._wake_due = False
        if isinstance(self._meeting, FirstToWake):
            self._meeting.woken()
        while self._line and self._offer(self._line[0], now):
            self._line.popleft()

    def room_grew(self, place: int, now: float) -> None:
        """It takes of those that wait; whoever waited for it, as it was, may do better elsewhere now."""
        if not self._line:
            return
        self._take(place, now)
        if self._pulling:
            for other in self._pulling.first_open():
                if other != place and self._line:
                    self._take(other, now)

    def _take(self, place: int, now: float) -> None:
        """Of the first that wait it takes what fits and suits it, while it is open."""
        w = self.workers[place]
        if not w.parked or self._closed(w.load):
            return
        head = [self._line.popleft() for _ in range(min(_WINDOW_OF_PULL if self._pulling else _WINDOW, len(self._line)))]
        taken = set()
        for job in sorted(head, key=lambda job: job.queued_at + self._younger_s(w.load, job)) if self._pulling else head:
            if self._closed(w.load):
                break
            if scores.has_room(w.load, job.cost) and self._suits(place, job, now):
                self._grant(job, place, now)
                taken.add(job.index)
        self._line.extendleft(job for job in reversed(head) if job.index not in taken)

    def _younger_s(self, load: Load, job: Job) -> float:
        return scores.younger_s(load, job.arrival.prompt_tokens)

    def _suits(self, place: int, job: Job, now: float) -> bool:
        if not self._pulling or now - job.queued_at >= _PATIENCE_S:
            return True
        return self._pulling.suits(place, Need(job.arrival.prompt_tokens, job.cost))

    def _closed(self, load: Load) -> bool:
        return self._pulling is not None and scores.is_closed(load)

    def _grant(self, job: Job, place: int, now: float) -> None:
        w = self.workers[place]
        job.attempt += 1
        job.worker, job.incarnation, job.prefilling = place, w.incarnation, True
        self._grants += 1
        w.granted += 1
        w.inbox[job.index] = job
        load = w.load
        self.turn = load.turns
        self.put(
            place,
            replace(
                load,
                used_tokens=load.used_tokens + job.cost,
                held=load.held + 1,
                prefill_tokens=load.prefill_tokens + job.arrival.prompt_tokens,
                turns=load.turns + 1 / load.weight,
                last_granted=self._grants,
            ),
        )
        w.most_used = max(w.most_used, w.load.used_tokens)
        self.at(now + self._wake_s, Event.BEGIN, place, job.index)
        if w.silent(now):
            Mishaps.watch(self, job, now)

    def put(self, place: int, load: Load) -> None:
        """What Redis knows of it changed."""
        w = self.workers[place]
        w.load = load
        if w.parked:
            self._meeting.put(place, load)

    def unpark(self, place: int) -> None:
        """It is passed over from now on."""
        w = self.workers[place]
        if w.parked:
            w.parked = False
            self._meeting.leave(place)

    # A worker's work

    def begin(self, now: float, place: int, index: int) -> None:
        """A granted request joins the batch."""
        w = self.workers[place]
        job = w.inbox.get(index)
        if job is None or not w.alive or job.incarnation != w.incarnation:
            return
        if w.frozen_until_s > now:
            w.stalled.append((index, job.attempt))
            return
        del w.inbox[index]
        w.begun[index] = job
        w.batch.add(job, now)
        self.plan(place)

    def plan(self, place: int) -> None:
        """The next end of steps; an older plan is left where it is and passed over when its time comes."""
        w = self.workers[place]
        if w.batch.ends_at != w.plan:
            w.plan = w.batch.ends_at
            if w.plan != math.inf:
                self.at(w.plan, Event.STEP, place)

    def _step(self, now: float, place: int, _: int) -> None:
        w = self.workers[place]
        if now != w.plan:
            return
        first, ended = w.batch.end()
        w.plan = math.inf
        self.plan(place)
        if not first and not ended:
            return
        for job in first:
            job.prefilling = False
            if math.isnan(job.first_at):
                job.first_at = now
        for job in ended:
            job.ended_at = now
            del w.begun[job.index]
        self._unended -= len(ended)
        load = w.load
        self.put(
            place,
            replace(
                load,
                prefill_tokens=load.prefill_tokens - sum(job.arrival.prompt_tokens for job in first),
                used_tokens=load.used_tokens - sum(job.cost for job in ended),
                held=load.held - len(ended),
            ),
        )
        if ended or (self._pulling and first):
            self.room_grew(place, now)

    def _beat(self, now: float, place: int, _: int) -> None:
        """What a heartbeat tells; strategies see it until the next."""
        w = self.workers[place]
        if not w.silent(now):
            busy_s = w.batch.busy_until(now)
            utilisation = min(1.0, (busy_s - w.busy_s) / max(now - w.beat_at_s, 1e-9))
            w.busy_s, w.beat_at_s = busy_s, now
            self.put(place, replace(w.load, memory=memory_of(w, now), utilisation=utilisation, waiting=w.batch.waiting))
        self.at(now + self.conditions.heartbeat_s, Event.BEAT, place)
