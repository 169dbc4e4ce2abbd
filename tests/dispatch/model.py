"""The laws of the queue in plain Python, as design.md states them: what the scripts are held against. Pure.

One model's lines, its workers, its readers. What a worker holds is looked up, never counted.
Never here: Redis, nonces (the scripts draw them), the words of errors.
"""

from dataclasses import dataclass, field

from dispatch import scores
from dispatch.rules import QueueRules
from dispatch.states import HELD, OnDisconnect, Priority, RequestState

S = RequestState
ALONE, FRONT, BACK = ":alone", ":front", ""
LINES = tuple((priority, part) for priority in Priority for part in (ALONE, FRONT, BACK))


@dataclass
class Written:
    """One entry of an output. `data` of an end is left open: its words are the scripts'."""

    kind: str
    attempt: int
    data: bytes = b""


@dataclass
class Request:
    id: str
    priority: Priority
    cost: int
    deadline: int
    max_attempts: int
    on_disconnect: OnDisconnect
    readers: set[str]
    reader_look: int = 0
    state: RequestState = S.QUEUED
    attempt: int = 0
    charged: int = 0
    crashes: int = 0
    worker: str = ""
    lease: int = 0
    not_before: int | None = 0
    log: list[Written] = field(default_factory=list)
    dead: bool = False
    queued_at: int = 0
    reserved: str = ""
    pinned: str = ""
    has_begun: bool = False
    prompt: int = 0
    prefilling: bool = False
    strategy: str = ""
    session: str = ""
    webhook: bool = False
    webhook_events: frozenset[str] = frozenset()

    @property
    def ended(self) -> bool:
        return self.state in (S.COMPLETED, S.FAILED, S.CANCELLED, S.EXPIRED)

    @property
    def is_held(self) -> bool:
        return self.state in HELD


@dataclass
class Owed:
    """A webhook that somebody was promised: one for an ending that was asked for, whatever becomes of it."""

    ending: str
    due: int | None
    """When it is next looked at; None: it is owed no more."""
    tried: int = 0
    state: str = "owed"


@dataclass
class Worker:
    id: str
    limit: int
    slots: int
    weight: float
    accepting: bool
    seen: int
    alone: str = ""
    """The suspect it runs, or is kept free for."""
    pin: str = ""
    """The waiting request that room is kept for."""
    prefill_weight: float = 4.0
    memory: float = 0.0
    utilisation: float = 0.0
    waiting: int = 0
    turns: float = 0.0
    last_granted: int = 0


class Model:
    """Each method is one law; it answers what the script has to answer."""

    def __init__(self, rules: QueueRules) -> None:
        self.rules = rules
        self.now = 0
        self.requests: dict[str, Request] = {}
        self.lines: dict[tuple[Priority, str], list[str]] = {line: [] for line in LINES}
        self.workers: dict[str, Worker] = {}
        self.parked: set[str] = set()
        self.shut: set[str] = set()
        self._stirred = False
        self.barred: set[str] = set()
        self.gateways: dict[str, int] = {}
        self.idempotency: dict[str, tuple[str, str]] = {}
        self.paused = False
        self.swept = self.amnesty = 0
        self.sessions: dict[str, str] = {}
        self.round = 0
        self.turn = 0.0
        self._freed: list[str] = []
        self.owed: dict[str, Owed] = {}

    # ---- looking

    def held_by(self, worker: str) -> list[Request]:
        return [r for r in self.requests.values() if r.is_held and r.worker == worker]

    def room(self, worker: str) -> int:
        w, held = self.workers[worker], self.held_by(worker)
        if w.alone or len(held) + bool(w.pin) >= w.slots:
            return 0
        return w.limit - sum(r.cost for r in held) - (self.requests[w.pin].cost if w.pin else 0)

    def load(self, worker: str) -> scores.Load:
        """As the strategies see it."""
        w, held = self.workers[worker], self.held_by(worker)
        used = sum(r.cost for r in held)
        return scores.Load(
            worker=w.id,
            limit_tokens=used + self.room(worker),
            used_tokens=used,
            held=len(held),
            slots=w.slots,
            weight=w.weight,
            prefill_weight=w.prefill_weight,
            prefill_tokens=sum(r.prompt for r in held if r.prefilling),
            turns=self._turns(w),
            last_granted=w.last_granted,
            memory=w.memory,
            utilisation=w.utilisation,
            waiting=w.waiting,
        )

    def score(self, worker: str) -> float:
        return scores.standing(self.load(worker))

    def _turns(self, w: Worker) -> float:
        return scores.turns(w.turns, self.turn, w.weight)

    def is_open(self, worker: str) -> bool:
        w = self.workers[worker]
        return w.accepting and worker not in self.barred and self.now - w.seen < self.rules.worker_seen_ms

    def is_reading(self, gateway: str) -> bool:
        return gateway in self.gateways and self.now - self.gateways[gateway] < self.rules.reader_lease_ms

    def backlog(self) -> int:
        return sum(map(len, self.lines.values()))

    def next_look(self, r: Request) -> int:
        moments = [r.deadline]
        if r.is_held:
            moments.append(r.lease)
        if r.state is S.WAITING and r.not_before is not None:
            moments.append(r.not_before)
        if r.on_disconnect is OnDisconnect.CANCEL and r.reader_look:
            moments.append(r.reader_look)
        return min(moments)

    def holds(self, request: str, attempt: int) -> bool:
        """The fence, for the true nonce of that attempt."""
        r = self.requests.get(request)
        return r is not None and r.is_held and r.attempt == attempt

    # ---- two lines meet

    def _best(self, r: Request) -> str | None:
        if self.paused:
            return None
        if not scores.is_pull(r.strategy):
            self._forget_the_gone(r.cost)
        able = self.parked if scores.is_pull(r.strategy) else self.parked | self.shut
        parked = [self.load(w) for w in able if self.is_open(w)]
        need = scores.Need(r.prompt, r.cost, r.session, self.sessions.get(r.session, ""))
        met = scores.choose(scores.Strategy(r.strategy or scores.DEFAULT), parked, need)
        return met.worker if met and self._suits(r, met.worker) else None

    def is_closed(self, worker: str) -> bool:
        return scores.is_closed(self.load(worker))

    def _suits(self, r: Request, worker: str) -> bool:
        """It waits for a closed worker that would serve it much better, but not for ever."""
        if not scores.is_pull(r.strategy):
            return True
        if r.state is S.QUEUED and r.queued_at and self.now - r.queued_at >= self.rules.patience_ms:
            return True
        self._forget_the_gone()
        closed = scores.first_closed([self.load(w) for w in self.shut])
        return scores.suits(self.load(worker), scores.Need(r.prompt, r.cost), closed)

    def _forget_the_gone(self, room: int = 0) -> None:
        for gone in [w for w in self.shut if not self.is_open(w) and self.room(w) >= room]:
            self._not_shut(gone)

    def _not_shut(self, worker: str) -> None:
        if worker in self.shut:
            self.shut.remove(worker)
            self._stirred = True

    def _unpark(self, worker: str) -> None:
        self.parked.discard(worker)
        self._not_shut(worker)

    def _grant(self, r: Request, worker: str) -> None:
        self._stirred = self._stirred or self.is_closed(worker)
        r.attempt += 1
        r.state, r.worker, r.lease = S.GRANTED, worker, self.now + self.rules.grant_ms
        r.prefilling = r.prompt > 0
        w = self.workers[worker]
        if r.strategy == scores.Strategy.ROUND_ROBIN:
            self.round += 1
            w.last_granted = self.round
        elif r.strategy == scores.Strategy.WEIGHTED_ROUND_ROBIN:
            had = self._turns(w)
            self.turn, w.turns = had, had + 1 / w.weight
        elif r.strategy == scores.Strategy.SESSION:
            self.sessions[r.session] = worker
        if r.pinned:
            keeper = self.workers[r.pinned]
            r.pinned = ""
            if keeper.pin == r.id:
                keeper.pin = ""
                if keeper.id != worker:
                    self._freed.append(keeper.id)

    def _park(self, worker: str) -> None:
        if not self.is_open(worker) or self.room(worker) <= 0:
            self._unpark(worker)
        elif self.is_closed(worker):
            self.parked.discard(worker)
            self.shut.add(worker)
        else:
            self.parked.add(worker)
            self._not_shut(worker)

    def _wait(self, r: Request, part: str) -> None:
        r.state, r.queued_at = S.QUEUED, self.now
        self.lines[r.priority, part].append(r.id)

    def _has_place(self, r: Request) -> bool:
        return r.reserved in self.workers and self.is_open(r.reserved) and self.workers[r.reserved].alone == r.id

    def _reserve(self, r: Request, worker: str) -> bool:
        """A suspect runs alone: at once where nothing is held, else the worker is kept free for it."""
        self.workers[worker].alone = r.id
        if self.held_by(worker):
            r.reserved = worker
            return False
        if r.state is S.QUEUED:
            self.lines[r.priority, ALONE].remove(r.id)
        self._grant(r, worker)
        return True

    def _place(self, r: Request) -> str | None:
        able = [w for w in self.parked | self.shut if self.is_open(w) and self.workers[w].limit >= r.cost]
        order = {w: (bool(self.held_by(w)), w in self.shut, self.score(w), w) for w in able}
        return None if self.paused else min(able, key=order.__getitem__, default=None)

    def _arrive(self, r: Request, part: str) -> None:
        if r.crashes:
            worker = self._place(r)
            if worker is None or self.held_by(worker):
                self._wait(r, ALONE)
            if worker:
                self._reserve(r, worker)
                self._park(worker)
            return
        worker = self._best(r)
        if worker:
            self._grant(r, worker)
            self._park(worker)
        else:
            self._wait(r, part)

    def _by_age(self, lines: list[tuple[Priority, str]]) -> list[tuple[Priority, str]]:
        """By priority, but `ageing_ms` of longer waiting outweigh one priority; a front before its line."""
        rank = {priority: n for n, priority in enumerate(Priority)}

        def since(priority: Priority) -> int:
            heads = [self.requests[self.lines[line][0]].queued_at for line in lines if line[0] is priority]
            return min(heads) + rank[priority] * self.rules.ageing_ms

        return sorted(lines, key=lambda line: (since(line[0]), rank[line[0]], line[1] != FRONT))

    def _take_suspect(self, worker: str) -> int:
        w = self.workers[worker]
        if w.alone:
            r = self.requests[w.alone]
            if r.is_held and r.worker == worker:
                return 0
            if r.state is S.QUEUED and r.reserved == worker:
                return 0 if self.held_by(worker) else self._reserve(r, worker)
            w.alone = ""
        for priority in Priority:
            for request in self.lines[priority, ALONE]:
                r = self.requests[request]
                if r.cost <= w.limit and not self._has_place(r):
                    return int(self._reserve(r, worker))
        return 0

    def _has_pin(self, r: Request) -> bool:
        if r.pinned not in self.workers or not self.is_open(r.pinned):
            return False
        return self.workers[r.pinned].pin == r.id and r.cost <= self.workers[r.pinned].limit

    def _take_pinned(self, worker: str) -> int:
        """As soon as it fits, closed or not; before it whoever stands before it in its line and fits, too."""
        w, granted = self.workers[worker], 0
        while w.pin and not w.alone:
            r = self.requests[w.pin]
            if r.state is not S.QUEUED or r.pinned != worker or r.cost > w.limit:
                w.pin = ""
                return granted
            held = self.held_by(worker)
            room = w.limit - sum(each.cost for each in held)
            if room < r.cost or len(held) >= w.slots:
                return granted
            line = next(line for line in self.lines.values() if r.id in line)
            first = next(i for i in line if self.requests[i].cost <= room)
            if first == r.id:
                w.pin = ""
            line.remove(first)
            self._grant(self.requests[first], worker)
            granted += 1
        return granted

    def _overtaken(self, w: Worker, line: list[str]) -> Request | None:
        """The first that waits for long, with nobody keeping room for it, and that w could hold."""
        for request in line:
            r = self.requests[request]
            if self.now - r.queued_at < self.rules.pin_ms:
                return None
            if r.cost <= w.limit and not self._has_pin(r):
                return r
        return None

    def _pin_oldest(self, worker: str) -> None:
        w = self.workers[worker]
        if w.pin:
            return
        for each in self._by_age([line for line, ids in self.lines.items() if ids and line[1] != ALONE]):
            line = self.lines[each]
            if self.requests[line[0]].cost <= self.room(worker):
                return
            r = self._overtaken(w, line)
            if r is not None:
                if r.cost > self.room(worker):
                    w.pin, r.pinned = r.id, worker
                return

    def _take_next(self, worker: str) -> bool:
        waiting = [r for r in self.requests.values() if r.state is S.QUEUED and not r.crashes]
        closed = self.is_closed(worker)
        if closed and all(scores.is_pull(r.strategy) for r in waiting):
            return False
        self._pin_oldest(worker)
        room = self.room(worker)
        fits = {r.id for r in waiting if r.cost <= room and not (closed and scores.is_pull(r.strategy))}
        lines = [line for line, ids in self.lines.items() if line[1] != ALONE and fits & set(ids)]
        if not lines:
            return False
        for line in (self.lines[each] for each in self._by_age(lines)):
            able = [r for r in map(self.requests.__getitem__, line) if r.id in fits and self._suits(r, worker)]
            if able:
                load = self.load(worker)
                r = min(able, key=lambda r: r.queued_at + self._younger_ms(load, r))
                line.remove(r.id)
                self._grant(r, worker)
                return True
        return False

    @staticmethod
    def _younger_ms(load: scores.Load, r: Request) -> float:
        return 1000 * scores.younger_s(load, r.prompt) if scores.is_pull(r.strategy) else 0.0

    def _take_waiting(self, worker: str) -> int:
        granted = 0
        while self.room(worker) > 0 and self._take_next(worker):
            granted += 1
        return granted

    def _meet_others(self) -> None:
        """Who waited for a closed worker may do better elsewhere, since that one was looked at, went or took something."""
        if not self._stirred:
            return
        self._stirred = False
        if self.paused:
            return
        for worker in sorted(self.parked, key=lambda w: (self.score(w), w)):
            if self.is_open(worker) and self._take_waiting(worker):
                self._park(worker)
        self._look_at_the_freed()

    def _room_grew(self, worker: str | None) -> int:
        granted = 0
        if worker not in self.workers:
            return 0
        self._not_shut(worker)
        if self.is_open(worker) and len(self.held_by(worker)) < self.workers[worker].slots and not self.paused:
            granted = self._take_suspect(worker) + self._take_pinned(worker)
            granted += self._take_waiting(worker)
        self._park(worker)
        self._look_at_the_freed()
        self._meet_others()
        return granted

    def _look_at_the_freed(self) -> None:
        """What a worker took may have been waited for at another: that one has room for others."""
        while self._freed:
            self._room_grew(self._freed.pop())

    # ---- a request leaves its place

    def _leave(self, r: Request) -> str | None:
        """The worker whose room grows, if any. It is not parked before it was asked whether it takes what waits."""
        if r.state is S.QUEUED:
            next(line for line in self.lines.values() if r.id in line).remove(r.id)
            if self._has_pin(r):
                self.workers[r.pinned].pin = ""
                return r.pinned
            if not self._has_place(r):
                return None
            self.workers[r.reserved].alone = ""
            return r.reserved
        if not r.is_held:
            return None
        self._unpark(r.worker)
        if r.worker in self.workers and self.workers[r.worker].alone == r.id:
            self.workers[r.worker].alone = ""
        return r.worker

    def _end(self, r: Request, state: RequestState) -> str | None:
        worker = self._leave(r)
        r.state = state
        r.log.append(Written("end", r.attempt))
        if r.webhook and (not r.webhook_events or state in r.webhook_events):
            assert r.id not in self.owed, "an ending is the only one"
            self.owed[r.id] = Owed(state, self.now)
        return worker

    def _give_back(self, r: Request) -> str | None:
        worker = self._leave(r)
        r.state = S.WAITING  # held by nobody while it looks for a place
        self._arrive(r, FRONT)
        return worker

    def _charge(self, r: Request, *, crash: bool, wait: bool) -> str | None:
        r.charged += 1
        r.crashes += crash
        if r.charged >= r.max_attempts or r.crashes >= self.rules.crash_limit:
            r.dead = True
            return self._end(r, S.FAILED)
        if not wait:
            return self._give_back(r)
        worker = self._leave(r)
        r.state, r.not_before = S.WAITING, None  # drawn by the script: read back and held against its bounds
        return worker

    # ---- clients' side

    def enqueue(self, r: Request, *, reader: str = "", key: str = "", body_hash: str = "") -> tuple[str, str]:
        if r.id in self.requests:
            return "ok", r.id
        if key and key in self.idempotency:
            first, first_hash = self.idempotency[key]
            return ("replay", first) if first_hash == body_hash else ("mismatch", first)
        self._best(r)
        self._meet_others()
        if self._best(r) is None and self.backlog() >= self.rules.max_backlog:
            return "full", r.id
        if key:
            self.idempotency[key] = (r.id, body_hash)
        if r.on_disconnect is OnDisconnect.CANCEL:
            r.reader_look = self.now + self.rules.reader_lease_ms
        if reader:
            self.gateways[reader] = self.now
            r.readers = {reader}
        self.requests[r.id] = r
        self._arrive(r, BACK)
        self._meet_others()
        return "ok", r.id

    def cancel(self, request: str) -> RequestState | None:
        r = self.requests.get(request)
        if r is None:
            return None
        if not r.ended:
            self._room_grew(self._end(r, S.CANCELLED))
        return r.state

    def attach(self, request: str, gateway: str) -> None:
        r = self.requests[request]
        if r.ended:
            return
        self.gateways[gateway] = self.now
        if gateway not in r.readers:
            r.readers = {g for g in r.readers if self.is_reading(g)} | {gateway}
        r.reader_look = self.now + self.rules.reader_lease_ms

    def detach(self, request: str, gateway: str, then_continue: bool) -> None:
        r = self.requests[request]
        if r.ended:
            return
        r.readers = {g for g in r.readers if g != gateway and self.is_reading(g)}
        if then_continue:
            r.on_disconnect = OnDisconnect.CONTINUE
        elif not r.readers:
            r.reader_look = self.now + self.rules.disconnect_grace_ms

    def keep_reading(self, gateway: str) -> None:
        self.gateways[gateway] = self.now

    # ---- workers' side

    def park(self, w: Worker) -> tuple[bool, int, int, int]:
        if w.id in self.barred:
            return True, 0, 0, 0
        if w.id in self.workers:
            before = self.workers[w.id]
            w.alone, w.pin, w.turns, w.last_granted = before.alone, before.pin, before.turns, before.last_granted
        self.workers[w.id] = w
        w.seen = self.now
        granted = self._room_grew(w.id)
        return False, self.room(w.id), len(self.held_by(w.id)), granted

    def begin(self, request: str, attempt: int) -> bool:
        if not self.holds(request, attempt):
            return False
        r = self.requests[request]
        if r.deadline <= self.now:
            return False
        if r.state is S.GRANTED and r.has_begun:
            r.log.append(Written("note", attempt))
        r.state, r.lease, r.has_begun = S.RUNNING, self.now + self.rules.lease_ms, True
        self.workers[r.worker].seen = self.now
        return True

    def append(self, request: str, attempt: int, seq: int, data: bytes) -> str:
        r = self.requests[request]
        if not self.holds(request, attempt) or r.state is not S.RUNNING:
            return "fenced"
        if seq <= len(r.log):
            return "dup"
        if seq > len(r.log) + 1:
            return "gap"
        r.log.append(Written("chunk", attempt, data))
        if r.prefilling:
            r.prefilling = False
            self._room_grew(r.worker)
        return "ok"

    def finish(self, request: str, attempt: int, seq: int, last: bytes, state: RequestState) -> str:
        r = self.requests[request]
        if r.state in (S.COMPLETED, S.FAILED) and not r.dead and r.attempt == attempt:
            return "dup"
        if not self.holds(request, attempt) or r.state is not S.RUNNING:
            return "fenced"
        if seq != len(r.log) + 1:
            return "gap"
        if last:
            r.log.append(Written("chunk", attempt, last))
        self._room_grew(self._end(r, state))
        return "ok"

    def renew(self, worker: str, named: list[tuple[str, int]]) -> tuple[set[str], set[str]]:
        lost = {q for q, attempt in named if not self.holds(q, attempt) or self.requests[q].worker != worker}
        for request, _ in named:
            r = self.requests[request]
            if request not in lost and r.state is S.RUNNING:
                r.lease = self.now + self.rules.lease_ms
        if worker in self.workers:
            self.workers[worker].seen = self.now
        mentioned = {q for q, _ in named}
        return lost, {r.id for r in self.held_by(worker) if r.state is S.RUNNING and r.id not in mentioned}

    def release(self, request: str, attempt: int) -> set[str]:
        """The answers allowed: a worker that lost it need not learn whether it was by its own earlier word."""
        r = self.requests[request]
        if not self.holds(request, attempt):
            return {"dup", "fenced"} if r.state is S.QUEUED and r.attempt == attempt else {"fenced"}
        self._room_grew(self._give_back(r))
        return {"ok"}

    def retry(self, request: str, attempt: int) -> set[str]:
        r = self.requests[request]
        if not self.holds(request, attempt):
            return {"dup", "fenced"} if r.state in (S.WAITING, S.FAILED) and r.attempt == attempt else {"fenced"}
        self._room_grew(self._charge(r, crash=False, wait=True))
        return {"ok"}

    def abandon(self, worker: str, suspects: set[str], order: list[str]) -> int:
        """`order`: the order in which the server keeps what the worker holds; it is nobody's law."""
        self.barred.add(worker)
        self._unpark(worker)
        held = {r.id for r in self.held_by(worker)}
        for request in order:
            r = self.requests[request]
            if r.state is S.GRANTED:
                self._give_back(r)
            else:
                self._charge(r, crash=request in suspects, wait=False)
        assert held == set(order)
        self._meet_others()
        return len(held)

    # ---- everybody's

    def pause(self, paused: bool) -> None:
        resumed, self.paused = self.paused and not paused, paused
        if not resumed:
            return
        for priority in Priority:
            for request in list(self.lines[priority, ALONE]):
                r = self.requests[request]
                worker = r.reserved if self._has_place(r) else self._place(r)
                if worker:
                    self._reserve(r, worker)
                    self._park(worker)
        for worker in sorted(w.id for w in self.workers.values() if w.pin and self.is_open(w.id)):
            self._take_pinned(worker)
            self._park(worker)
        for each in self._by_age([line for line, ids in self.lines.items() if ids and line[1] != ALONE]):
            line = self.lines[each]
            for request in list(line):
                r = self.requests[request]
                best = self._best(r)
                if best:
                    line.remove(request)
                    self._grant(r, best)
                    self._park(best)
        self._look_at_the_freed()
        self._stirred = True
        self._meet_others()

    def take_owed(self, again_ms: int) -> dict[str, int]:
        due = {i: o for i, o in self.owed.items() if o.due is not None and o.due <= self.now}
        for each in due.values():
            each.due = self.now + again_ms
        return {i: o.tried for i, o in due.items()}

    def note_try(self, request: str, number: int, verdict: str, wait_ms: int) -> str | None:
        o = self.owed.get(request)
        if o is None:
            return None
        if o.state == "owed" and (number == o.tried + 1 or verdict == "delivered"):
            o.tried += verdict != "later"
            if verdict in ("again", "later"):
                o.due = self.now + wait_ms
            else:
                o.state, o.due = verdict, None
        return o.state

    def sweep(self) -> int:
        if self.now - self.swept > self.rules.lease_ms / 2:
            self.amnesty = self.now + self.rules.lease_ms
        self.swept = self.now
        due = [r for r in self.requests.values() if not r.ended and self.next_look(r) <= self.now]
        return sum([self._look_at(r) for r in sorted(due, key=lambda r: (self.next_look(r), r.id))])

    def _look_at(self, r: Request) -> bool:
        moved = self._look(r)
        self._meet_others()
        return moved

    def _look(self, r: Request) -> bool:
        if r.ended:
            return False
        if r.deadline <= self.now:
            self._room_grew(self._end(r, S.EXPIRED))
            return True
        if r.on_disconnect is OnDisconnect.CANCEL and 0 < r.reader_look <= self.now:
            moments = [self.gateways[g] + self.rules.reader_lease_ms for g in r.readers if self.is_reading(g)]
            if self.now < self.amnesty and r.readers:
                moments.append(self.amnesty)
            if not moments:
                self._room_grew(self._end(r, S.CANCELLED))
                return True
            r.reader_look = max(moments)
        if r.state is S.WAITING and r.not_before is not None and r.not_before <= self.now:
            self._arrive(r, FRONT)
            return True
        if r.state is S.GRANTED and r.lease <= self.now:
            worker = self._give_back(r)
            if worker in self.workers:
                self.workers[worker].seen = 0
                self._room_grew(worker)
            return True
        if r.state is S.RUNNING and r.lease <= self.now:
            if self.now < self.amnesty:
                r.lease = self.amnesty
                return False
            worker = self._charge(r, crash=False, wait=False)
            if worker in self.workers:
                self.workers[worker].seen = 0
                self._room_grew(worker)
            return True
        return False
