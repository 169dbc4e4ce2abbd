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
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from dispatch.states import OnDisconnect, Priority, RequestState
from tests.dispatch.twin import Twin
from tests.servers import RealServer

RULES = QueueRules(max_backlog=6, feed_cap=8, backoff_ms=500)
EXAMPLES = int(os.environ.get("PENSTOCK_PROPERTY_EXAMPLES", "0"))
WORKERS = ("w-1", "w-2", "w-3")
GATEWAYS = ("g-1", "g-2")

pick = st.integers(0, 63)
workers = st.sampled_from(WORKERS)
gateways = st.sampled_from(GATEWAYS)
STEPS = (1, 400, 1_100, 2_100, 3_100, 5_100, 10_100, 30_100, 61_000, 3_600_000)


class Laws(RuleBasedStateMachine):
    """One event loop and one client for all walks of a run: set by the test."""

    runner: asyncio.Runner
    redis: Redis
    stopped = True

    @initialize(limit=st.sampled_from((0, 30, 100)))
    def begin_empty(self, limit: int) -> None:
        self.do(self.redis.flushall())
        self.twin = Twin(self.redis, RULES)
        self.stopped = False
        self.last: tuple[str, tuple[Any, ...]] | None = None
        if limit:
            self.write("park", "w-1", limit, 2, 1.0, True)

    def do(self, step: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self.runner.run(step)
        except BaseException:
            self.stopped = True
            raise

    def write(self, method: str, *args: Any) -> None:
        self.last = (method, args)
        self.do(getattr(self.twin, method)(*args))

    def grant(self, n: int, live: bool) -> m.Grant:
        """Any grant there ever was, or one that stands."""
        grants = list(self.twin.grants.values())
        standing = [g for g in grants if self.twin.model.holds(g.request, g.attempt)]
        chosen = standing if live and standing else grants
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
        cost=st.sampled_from((1, 10, 10, 25, 60, 500)),
        priority=st.sampled_from(Priority),
        deadline_ms=st.sampled_from((4_000, 60_000, 3_600_000)),
        max_attempts=st.sampled_from((1, 2, 3)),
        reader=st.sampled_from(("", *GATEWAYS)),
        on_disconnect=st.sampled_from(OnDisconnect),
        key=st.sampled_from(("", "", "k-1", "k-2")),
        body=st.sampled_from(("b-1", "b-2")),
    )
    def enqueue(self, key: str, body: str, **fields: Any) -> None:
        cost = fields.pop("cost")
        self.write("enqueue", self.twin.new(cost, idempotency=key, body_hash=body if key else "", **fields))

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
    )
    def park(self, worker: str, limit: int, slots: int, weight: float, accepting: bool) -> None:
        self.write("park", worker, limit, slots, weight, accepting)

    @rule(worker=workers)
    def read_inbox(self, worker: str) -> None:
        self.do(self.twin.read_inbox(worker))

    @precondition(any_grant)
    @rule(n=pick, live=st.sampled_from((True, True, False)))
    def begin(self, n: int, live: bool) -> None:
        self.write("begin", self.grant(n, live))

    @precondition(any_grant)
    @rule(n=pick, live=st.sampled_from((True, True, False)), off=st.sampled_from((0, 0, 0, 0, -1, 1)), number=pick)
    def append(self, n: int, live: bool, off: int, number: int) -> None:
        grant = self.grant(n, live)
        seq = max(1, len(self.twin.record(grant.request).log) + 1 + off)
        self.write("append", grant, seq, f"chunk {number}".encode())

    @precondition(any_grant)
    @rule(
        n=pick,
        live=st.sampled_from((True, True, False)),
        off=st.sampled_from((0, 0, 0, 1)),
        last=st.sampled_from((b"", b"last")),
        state=st.sampled_from((RequestState.COMPLETED, RequestState.FAILED)),
    )
    def finish(self, n: int, live: bool, off: int, last: bytes, state: RequestState) -> None:
        grant = self.grant(n, live)
        self.write("finish", grant, len(self.twin.record(grant.request).log) + 1 + off, last, state)

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

    @precondition(any_grant)
    @rule(n=pick, of_seven=st.integers(0, 6), suspects=st.booleans())
    def abandon(self, n: int, of_seven: int, suspects: bool) -> None:
        if of_seven:  # rare: its workers are lost to the walk
            return
        grant = self.grant(n, True)
        held = [r.id for r in self.twin.model.held_by(grant.worker)]
        self.write("abandon", grant.worker, tuple(held[: n + 1]) if suspects else ())

    # ---- everybody

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat_after_a_lost_reply(self) -> None:
        assert self.last is not None
        self.write(self.last[0], *self.last[1])

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.write("pause", paused)

    @rule()
    def sweep(self) -> None:
        self.write("sweep")

    @rule(ms=st.sampled_from(STEPS))
    def advance(self, ms: int) -> None:
        self.do(self.twin.advance(ms))

    @rule(ms=st.sampled_from((400, 2_100, 4_000)), times=st.integers(1, 6))
    def time_goes_by_under_a_sweeper(self, ms: int, times: int) -> None:
        for _ in range(times):
            self.do(self.twin.advance(ms))
            self.do(self.twin.sweep())

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
    walk(server.url, max_examples=EXAMPLES or 60, stateful_step_count=50, derandomize=not EXAMPLES)
