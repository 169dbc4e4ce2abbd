"""The same rules as test_laws.py, drawn by weight in walks of hundreds of steps: busy fleets, deep histories.

Hypothesis finds the small corner and shrinks it; this keeps requests running, faulting and moving for long.
PENSTOCK_PROPERTY_EXAMPLES walks, by seeds drawn anew, instead of the fixed few.
"""

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from dispatch.outbox import Verdict
from dispatch.redis_client import connect
from dispatch.states import OnDisconnect, Priority, RequestState
from tests.dispatch.test_laws import GATEWAYS, HOOKS, STRATEGIES, TOO_BIG, WORKERS, Laws
from tests.servers import RealServer

STEPS = 200
SEEDS = [random.randrange(1 << 32) for _ in range(int(os.environ.get("PENSTOCK_PROPERTY_EXAMPLES", "0")))] or [1, 2, 3]

Draw = Callable[[random.Random], Any]


def some(*values: Any) -> Draw:
    return lambda rng: rng.choice(values)


def subset(values: tuple[str, ...]) -> Draw:
    return lambda rng: {v for v in values if rng.random() < 0.7}


def number(upto: int = 63) -> Draw:
    return lambda rng: rng.randint(0, upto)


# rule -> (weight, {argument: how to draw it})
RULES: dict[str, tuple[int, dict[str, Draw]]] = {
    "enqueue": (
        10,
        {
            "cost": some(1, 10, 10, 25, 60, TOO_BIG),
            "priority": some(*Priority),
            "deadline_ms": some(4_000, 60_000, 3_600_000, 3_600_000),
            "max_attempts": some(1, 2, 3, 9),
            "reader": some("", *GATEWAYS),
            "on_disconnect": some(*OnDisconnect),
            "key": some("", "", "", "k-1", "k-2"),
            "body": some("b-1", "b-2"),
            "prompt": some(0, 3, 9),
            "strategy": some("", "", *STRATEGIES),
            "session": some("a", "b"),
            "hook": some(*HOOKS),
        },
    ),
    "cancel": (2, {"n": number()}),
    "attach": (3, {"n": number(5), "gateway": some(*GATEWAYS)}),
    "detach": (2, {"n": number(5), "gateway": some(*GATEWAYS), "then_continue": some(False, True)}),
    "keep_reading": (2, {"gateway": some(*GATEWAYS)}),
    "read_feed": (4, {"gateway": some(*GATEWAYS)}),
    "park": (
        5,
        {
            "worker": some(*WORKERS),
            "limit": some(15, 30, 70, 100),
            "slots": some(1, 2, 8),
            "weight": some(0.5, 1.0, 3.0),
            "accepting": some(True, True, True, True, False),
            "load": some(0.0, 0.25, 0.9),
        },
    ),
    "take_up": (8, {"idle": some(*WORKERS)}),
    "begin_one": (2, {"n": number(), "live": some(True, False)}),
    "append_next": (12, {"n": number(), "number": number()}),
    "append_again": (3, {"n": number(), "number": number(), "back": some(1, 2)}),
    "append_beyond_a_gap": (2, {"n": number(), "number": number(), "beyond": some(1, 2)}),
    "append_late": (3, {"n": number(), "number": number()}),
    "finish": (5, {"n": number(), "last": some(b"last", b""), "state": some(RequestState.COMPLETED, RequestState.FAILED)}),
    "finish_late_or_beyond_a_gap": (3, {"n": number(), "live": some(True, False), "off": some(-1, 0, 1)}),
    "renew": (3, {"worker": some(*WORKERS), "leave_out": number(9), "stale": some(True, False)}),
    "release": (3, {"n": number(), "live": some(True, True, False)}),
    "retry": (3, {"n": number(), "live": some(True, True, False)}),
    "write_as_stranger": (1, {"n": number()}),
    "repeat_after_a_lost_reply": (4, {}),
    "pause": (1, {"calm": some(True, False)}),
    "resume": (1, {}),
    "sweep": (3, {}),
    "take_owed": (2, {}),
    "note_try": (2, {"n": number(), "number": some(1, 2, 3), "verdict": some(*Verdict), "wait_ms": some(1, 5_000)}),
    "advance": (5, {"ms": some(1, 400, 1_100, 2_000, 3_000, 5_001)}),
    "life_goes_on": (
        4,
        {"ms": some(400, 2_000, 4_000), "times": some(1, 2, 4), "alive": subset(WORKERS), "reading": subset(GATEWAYS)},
    ),
}
NEEDS_A_GRANT = {name for name in RULES if name.startswith(("begin_one", "append", "finish", "release", "retry", "write_as"))}
RARE = {
    "abandon": {"n": number(), "suspects": some(True, False)},
    "leap": {"ms": some(10_100, 30_000, 61_000), "of_three": some(0)},
}


def step(machine: Laws, rng: random.Random) -> None:
    if rng.random() < 0.01:
        name = rng.choice(list(RARE))
        draws = RARE[name]
    else:
        name = rng.choices(list(RULES), [weight for weight, _ in RULES.values()])[0]
        draws = RULES[name][1]
    if (name in NEEDS_A_GRANT or name == "abandon") and not machine.any_grant():
        return
    if name in ("cancel", "attach", "detach") and not machine.any_request():
        return
    if name == "note_try" and not machine.twin.model.owed:
        return
    if (name == "abandon" and machine.twin.model.barred) or (name == "pause" and machine.twin.model.paused):
        return
    getattr(machine, name)(**{argument: draw(rng) for argument, draw in draws.items()})


@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_walk_obeys_the_laws(server: RealServer, seed: int) -> None:
    with asyncio.Runner() as runner:
        redis = connect(server.url)
        machine = type("LawsHere", (Laws,), {"runner": runner, "redis": redis})()
        rng = random.Random(seed)
        try:
            machine.begin(limit=100, requests=3, reader="g-1")
            for _ in range(STEPS):
                step(machine, rng)
            machine.teardown()
        finally:
            runner.run(redis.aclose())
