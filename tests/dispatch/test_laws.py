"""A state machine drives the real scripts and the model of the laws side by side, on every server.

PENSTOCK_PROPERTY_EXAMPLES raises the number of walks; with it they are drawn anew each time.
"""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from redis.asyncio import Redis

from dispatch import messages as m
from dispatch.outbox import Verdict
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from dispatch.scores import Strategy
from dispatch.states import OnDisconnect, Priority, RequestState
from tests.dispatch.twin import Twin
from tests.servers import RealServer

RULES = QueueRules(max_backlog=6, feed_cap=8, backoff_ms=500)
TOO_BIG = 500
STRATEGIES = ("", *(s for s in Strategy if s is not Strategy.POWER_OF_TWO))
"""All whose choice the laws can foresee; power_of_two throws dice, test_strategies.py knows how they fall."""
EXAMPLES = int(os.environ.get("PENSTOCK_PROPERTY_EXAMPLES", "0"))
WORKERS = ("w-1", "w-2", "w-3")
GATEWAYS = ("g-1", "g-2")
HOOKS = (None, "", "completed", "failed cancelled expired")

pick = st.integers(0, 63)
workers = st.sampled_from(WORKERS)
gateways = st.sampled_from(GATEWAYS)
STEPS = (1, 400, 1_100, 2_000, 3_000, 5_001)
LEAPS = (10_100, 30_000, 61_000, 3_600_000)


class Laws(RuleBasedStateMachine):
    """One event loop and one client for all walks of a run: set by the test."""

    runner: asyncio.Runner
    redis: Redis
    stopped = True

    @initialize(limit=st.sampled_from((0, 30, 100)), requests=st.integers(0, 3), reader=st.sampled_from(("", *GATEWAYS)))
    def begin(self, limit: int, requests: int, reader: str) -> None:
        self.do(self.redis.flushall())
        self.twin = Twin(self.redis, RULES)
        self.stopped = False
        self.last: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None
        if limit:
            self.write("park", "w-1", limit, 2, 1.0, True)
        for _ in range(requests):
            self.write("enqueue", self.twin.new(10, reader=reader))
        self.take_up("w-3")

    def do(self, step: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self.runner.run(step)
        except BaseException:
            self.stopped = True
            raise

    def write(self, method: str, *args: Any, **named: Any) -> None:
        self.last = (method, args, named)
        self.do(getattr(self.twin, method)(*args, **named))

    def grant(self, n: int, live: bool) -> m.Grant:
        """Any grant there ever was, or one that stands: rather one that runs."""
        grants = list(self.twin.grants.values())
        standing = [g for g in grants if self.twin.model.holds(g.request, g.attempt)]
        runs = [g for g in standing if self.twin.record(g.request).state is RequestState.RUNNING]
        chosen = (runs or standing or grants) if live else grants
        return chosen[-1 - n % len(chosen)]

    def request(self, n: int) -> str:
        requests = list(self.twin.model.requests)
        return requests[-1 - n % len(requests)]

    def any_grant(self) -> bool:
        return bool(self.twin.grants)

    def any_request(self) -> bool:
        return bool(self.twin.model.requests)

    # ---- clients

    @rule(
        cost=st.sampled_from((10, 1, 25, 60, TOO_BIG)),
        priority=st.sampled_from(Priority),
        deadline_ms=st.sampled_from((4_000, 60_000, 3_600_000)),
        max_attempts=st.sampled_from((1, 2, 3)),
        reader=st.sampled_from(("", *GATEWAYS)),
        on_disconnect=st.sampled_from(OnDisconnect),
        key=st.sampled_from(("", "", "k-1", "k-2")),
        body=st.sampled_from(("b-1", "b-2")),
        prompt=st.sampled_from((0, 3, 9)),
        strategy=st.sampled_from(STRATEGIES),
        session=st.sampled_from(("a", "b")),
        hook=st.sampled_from(HOOKS),
    )
    def enqueue(self, key: str, body: str, hook: str | None, **fields: Any) -> None:
        if hook is not None:
            fields |= {"webhook": "https://example.com/hook", "webhook_events": hook}
        cost, prompt = fields.pop("cost"), fields.pop("prompt")
        if any(r.cost == TOO_BIG and not r.ended for r in self.twin.model.requests.values()):
            cost = min(cost, 60)  # one is enough to be overtaken; more would only fill the backlog
        self.write("enqueue", self.twin.new(cost, idempotency=key, body_hash=body if key else "", prompt_tokens=prompt, **fields))

    @rule(cost=st.sampled_from((10, 25)))
    def enqueue_plain(self, cost: int) -> None:
        self.write("enqueue", self.twin.new(cost))

    @precondition(any_request)
    @rule(n=pick)
    def cancel(self, n: int) -> None:
        self.write("cancel", self.request(n))

    @precondition(any_request)
    @rule(n=pick, gateway=gateways)
    def attach(self, n: int, gateway: str) -> None:
        self.write("attach", gateway, self.request(n))

    @precondition(any_request)
    @rule(n=pick, gateway=gateways, then_continue=st.booleans())
    def detach(self, n: int, gateway: str, then_continue: bool) -> None:
        self.write("detach", gateway, self.request(n), then_continue)

    @rule(gateway=gateways)
    def keep_reading(self, gateway: str) -> None:
        self.write("keep_reading", gateway)

    @rule(gateway=gateways)
    def read_feed(self, gateway: str) -> None:
        self.do(self.twin.read_feed(gateway))

    # ---- workers

    @rule(
        worker=workers,
        limit=st.sampled_from((15, 30, 70, 100)),
        slots=st.sampled_from((1, 2, 8)),
        weight=st.sampled_from((0.5, 1.0, 3.0)),
        accepting=st.sampled_from((True, True, True, False)),
        load=st.sampled_from((0.0, 0.25, 0.9)),
    )
    def park(self, worker: str, limit: int, slots: int, weight: float, accepting: bool, load: float) -> None:
        reports = {"memory": load, "utilisation": 1 - load, "waiting": int(3 * load)}
        self.write("park", worker, limit, slots, weight, accepting, **reports)

    @rule(worker=workers)
    def read_inbox(self, worker: str) -> None:
        self.do(self.twin.read_inbox(worker))

    @precondition(any_grant)
    @rule(n=pick, live=st.sampled_from((True, True, False)))
    def begin_one(self, n: int, live: bool) -> None:
        self.write("begin", self.grant(n, live))

    @rule(idle=workers)
    def take_up(self, idle: str) -> None:
        """As workers do: say what they can hold, begin all that the inbox brings. One does not."""
        for worker in WORKERS:
            if worker != idle:
                self.beat(worker)
                for grant in self.do(self.twin.read_inbox(worker)):
                    self.write("begin", grant)

    def append(self, n: int, live: bool, off: int, number: int) -> None:
        grant = self.grant(n, live)
        seq = max(1, len(self.twin.record(grant.request).log) + 1 + off)
        self.write("append", grant, seq, f"chunk {number}".encode())

    @precondition(any_grant)
    @rule(n=pick, number=pick)
    def append_next(self, n: int, number: int) -> None:
        self.append(n, True, 0, number)

    @precondition(any_grant)
    @rule(n=pick, number=pick, back=st.integers(1, 2))
    def append_again(self, n: int, number: int, back: int) -> None:
        self.append(n, True, -back, number)

    @precondition(any_grant)
    @rule(n=pick, number=pick, beyond=st.integers(1, 2))
    def append_beyond_a_gap(self, n: int, number: int, beyond: int) -> None:
        self.append(n, True, beyond, number)

    @precondition(any_grant)
    @rule(n=pick, number=pick)
    def append_late(self, n: int, number: int) -> None:
        self.append(n, False, 0, number)

    @precondition(any_grant)
    @rule(n=pick, last=st.sampled_from((b"last", b"")), state=st.sampled_from((RequestState.COMPLETED, RequestState.FAILED)))
    def finish(self, n: int, last: bytes, state: RequestState) -> None:
        grant = self.grant(n, True)
        self.write("finish", grant, len(self.twin.record(grant.request).log) + 1, last, state)

    @precondition(any_grant)
    @rule(n=pick, live=st.booleans(), off=st.integers(-1, 1))
    def finish_late_or_beyond_a_gap(self, n: int, live: bool, off: int) -> None:
        grant = self.grant(n, live)
        self.write("finish", grant, max(1, len(self.twin.record(grant.request).log) + 1 + off), b"late")

    def beat(self, worker: str) -> None:
        w = self.twin.model.workers.get(worker)
        if w:
            reports = {"memory": w.memory, "utilisation": w.utilisation, "waiting": w.waiting}
            self.write("park", w.id, w.limit, w.slots, w.weight, w.accepting, **reports)
        self.write("renew", worker, [self.twin.grant(r.id) for r in self.twin.model.held_by(worker)])

    @rule(worker=workers, leave_out=pick, stale=st.booleans())
    def renew(self, worker: str, leave_out: int, stale: bool) -> None:
        grants = [g for g in self.twin.grants.values() if g.worker == worker]
        if not stale:
            grants = [g for g in grants if self.twin.model.holds(g.request, g.attempt)]
        latest = {g.request: g for g in grants}
        self.write("renew", worker, [g for n, g in enumerate(latest.values()) if leave_out > 7 or n != leave_out])

    @precondition(any_grant)
    @rule(n=pick, live=st.sampled_from((True, True, False)))
    def release(self, n: int, live: bool) -> None:
        self.write("release", self.grant(n, live))

    @precondition(any_grant)
    @rule(n=pick, live=st.sampled_from((True, True, False)))
    def retry(self, n: int, live: bool) -> None:
        self.write("retry", self.grant(n, live))

    @precondition(any_grant)
    @rule(n=pick)
    def write_as_stranger(self, n: int) -> None:
        self.do(self.twin.write_as_stranger(self.grant(n, True)))

    @precondition(lambda self: self.any_grant() and not self.twin.model.barred)
    @rule(n=pick, suspects=st.booleans())
    def abandon(self, n: int, suspects: bool) -> None:
        grant = self.grant(n, True)
        held = [r.id for r in self.twin.model.held_by(grant.worker)]
        self.write("abandon", grant.worker, tuple(held[: n + 1]) if suspects else ())

    # ---- everybody

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat_after_a_lost_reply(self) -> None:
        assert self.last is not None
        method, args, named = self.last
        self.write(method, *args, **named)

    @precondition(lambda self: not self.twin.model.paused)
    @rule(calm=st.booleans())
    def pause(self, calm: bool) -> None:
        if not calm:  # rare: little happens meanwhile
            self.write("pause", True)

    @rule()
    def resume(self) -> None:
        self.write("pause", False)

    @rule()
    def sweep(self) -> None:
        self.write("sweep")

    @rule()
    def take_owed(self) -> None:
        self.do(self.twin.take_owed())

    @precondition(lambda self: self.twin.model.owed)
    @rule(n=pick, number=st.integers(1, 3), verdict=st.sampled_from(Verdict), wait_ms=st.sampled_from((1, 5_000)))
    def note_try(self, n: int, number: int, verdict: Verdict, wait_ms: int) -> None:
        owed = list(self.twin.model.owed)
        self.write("note_try", owed[-1 - n % len(owed)], number, verdict, wait_ms)

    @rule(ms=st.sampled_from(STEPS))
    def advance(self, ms: int) -> None:
        self.do(self.twin.advance(ms))

    @rule(ms=st.sampled_from(LEAPS), of_three=st.integers(0, 2))
    def leap(self, ms: int, of_three: int) -> None:
        if not of_three:  # rare: few requests outlive it
            self.do(self.twin.advance(ms))

    @rule(ms=st.sampled_from((400, 2_000, 4_000)), times=st.integers(1, 6), alive=st.sets(workers), reading=st.sets(gateways))
    def life_goes_on(self, ms: int, times: int, alive: set[str], reading: set[str]) -> None:
        """Somebody sweeps; some workers and gateways do as they should, of the others nothing is heard."""
        if alive:
            self.write("pause", False)
        for _ in range(times):
            self.do(self.twin.advance(ms))
            for worker in sorted(alive):
                self.beat(worker)
            for gateway in sorted(reading):
                self.do(self.twin.keep_reading(gateway))
            self.write("sweep")

    def teardown(self) -> None:
        """When all is over: every request reaches an ending by its deadline, and nothing is held."""
        if self.stopped:
            return
        for gateway in self.twin.readers:
            self.do(self.twin.read_feed(gateway))
        self.do(self.twin.advance(3_700_000))
        self.do(self.twin.sweep())
        left = [r for r in self.twin.model.requests.values() if not r.ended]
        assert not left, f"not ended after every deadline: {left}"


def walk(server_url: str, **given: Any) -> None:
    """Draw walks until one breaks a law."""
    with asyncio.Runner() as runner:
        redis = connect(server_url)
        machine = type("LawsHere", (Laws,), {"runner": runner, "redis": redis})
        common: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
        try:
            run_state_machine_as_test(machine, settings=settings(**common, **given))
        finally:
            runner.run(redis.aclose())


def test_the_scripts_obey_the_laws(server: RealServer) -> None:
    walk(server.url, max_examples=EXAMPLES or 100, stateful_step_count=50, derandomize=not EXAMPLES)
