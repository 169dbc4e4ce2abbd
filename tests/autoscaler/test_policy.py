"""`decide` by example: what each rule asks for, what holds it back, what it says."""

from dataclasses import replace

import pytest

from autoscaler.policy import Floor, History, PoolPolicy, decide
from autoscaler.seen import Phase, SeenWorker
from dispatch.scaling import Action, ScalingPolicy
from tests.autoscaler.seeing import BEGIN_S, played, seen, workers

WIDE = PoolPolicy(max=100)


def test_one_waiting_request_wakes_a_pool_from_zero() -> None:
    slow = replace(WIDE, up_window_s=30.0)
    decisions, _ = played(slow, [seen(0), seen(1), seen(2, waiting=1, waiting_tokens=10)])
    assert [(d.desired, d.action) for d in decisions] == [(0, Action.HOLD), (0, Action.HOLD), (1, Action.UP)]


def test_a_backlog_asks_for_who_drains_it_in_time() -> None:
    (decision,), _ = played(WIDE, [seen(0, workers(1), waiting=40, waiting_tokens=4_000, oldest_wait_s=14.2)])
    assert decision.desired == 8  # 4,000 tokens in 5 s, 100 tokens/s each
    assert decision.reason == "oldest wait 14.2 s > target 5 s, drain time 40.0 s > target 5 s, 40 waiting, 100 tokens/s each"
    assert decision.policy == "queue_delay"


def test_who_is_on_the_way_counts_with_what_is_left_of_its_start() -> None:
    cold = (20.0, 22.0)
    # In 22.25 s two ready ones make 4,450 tokens, one that is there in 5 s makes 1,725, and one ordered now 225.
    alone = seen(0, workers(2), waiting=70, waiting_tokens=7_000, oldest_wait_s=1.0, cold_start_s=cold)
    helped = replace(alone, workers=workers(2) + workers(1, Phase.LOADING, age_s=15.0))
    assert decide(alone, WIDE, History())[0].desired == 2 + 12
    assert decide(helped, WIDE, History())[0].desired == 3 + 4
    fresh = replace(alone, workers=workers(2) + workers(1, Phase.STARTING, age_s=0.0))
    assert decide(fresh, WIDE, History())[0].desired == 3 + 11


def test_while_no_speed_is_known_requests_are_counted() -> None:
    look = replace(seen(0, waiting=40, waiting_tokens=4_000), tokens_per_s_each=0.0)
    first, history = decide(look, WIDE, History())
    assert first.desired == 5
    assert first.reason.endswith("speed not known: 8 requests a worker")
    busy = replace(seen(1, workers(0), running=3), tokens_per_s_each=0.0, workers=workers(5, Phase.LOADING, age_s=1.0))
    assert decide(busy, WIDE, history)[0].desired == 5


def test_what_is_on_the_way_is_not_ordered_again() -> None:
    first, history = decide(seen(0, waiting=40, waiting_tokens=4_000, cold_start_s=(20.0, 22.0)), WIDE, History())
    coming = workers(first.desired, Phase.STARTING, age_s=1.0)
    second, _ = decide(
        seen(1, coming, waiting=40, waiting_tokens=4_000, oldest_wait_s=1.0, cold_start_s=(20.0, 22.0)), WIDE, history
    )
    assert (first.desired, second.desired, second.action) == (18, 18, Action.HOLD)  # 4,000 tokens in 0.45 of 5 s


@pytest.mark.parametrize(
    ("policy", "shown", "desired", "reason"),
    [
        (
            replace(WIDE, policies=(ScalingPolicy.REQUEST_COUNT,)),
            {"waiting": 12, "running": 9},
            3,
            "12 waiting + 9 running, 8 a worker",
        ),
        (replace(WIDE, policies=(ScalingPolicy.UTILISATION,)), {"running": 9}, 3, "utilisation 0.95 > target 0.8 on 2 ready"),
        (
            replace(WIDE, policies=(ScalingPolicy.LATENCY,)),
            {"running": 9, "ttft_p95_s": 3.0},
            3,
            "p95 time to first token 3.00 s > target 2 s",
        ),
        (
            replace(WIDE, policies=(ScalingPolicy.LATENCY,)),
            {"running": 9, "ttft_p95_s": 1.9},
            2,
            "p95 time to first token 1.90 s <= target 2 s",
        ),
        (
            replace(WIDE, policies=tuple(ScalingPolicy)),
            {"running": 33, "ttft_p95_s": 3.0},
            5,
            "0 waiting + 33 running, 8 a worker",
        ),
    ],
)
def test_each_rule_and_the_largest(policy: PoolPolicy, shown: dict[str, float], desired: int, reason: str) -> None:
    there = [replace(worker, utilisation=0.95, held=4) for worker in workers(2)]
    decision, _ = decide(seen(0, there, **shown), policy, History())
    assert (decision.desired, decision.reason) == (desired, reason)


def test_latency_waits_until_its_figure_tells_of_the_last_change() -> None:
    slow = {"running": 9, "ttft_p95_s": 9.0, "cold_start_s": (5.0, 6.0)}
    policy = replace(WIDE, policies=(ScalingPolicy.LATENCY,))
    looks = [seen(0, workers(2), **slow), *(seen(t, workers(4), **slow) for t in range(1, 70))]
    decisions, _ = played(policy, looks)
    assert [n for n, d in enumerate(decisions) if d.action is Action.UP] == [0, 65]


def test_memory_counts_only_where_something_is_held() -> None:
    policy = replace(WIDE, policies=(ScalingPolicy.UTILISATION,))
    full = [replace(worker, memory_used=0.98) for worker in workers(2)]
    assert decide(seen(0, full), policy, History())[0].raw == 0.0
    assert decide(seen(0, [replace(worker, held=1) for worker in full], running=2), policy, History())[0].desired == 3


def test_down_only_to_the_peak_of_the_window() -> None:
    loads = {0: 6_000, 20: 2_000, 40: 0}
    looks, tokens = [], 0
    for at_s in range(130):
        tokens = loads.get(at_s, tokens)
        looks.append(seen(at_s, workers(12), waiting=1, waiting_tokens=tokens))
    decisions, _ = played(WIDE, looks)
    numbers = [d.desired for d in decisions]
    assert numbers == [12] * 79 + [4] * 20 + [1] * 31  # the last wish for 12 is of second 19
    assert decisions[30].limits == ("down_window 60 s",)


def test_up_only_to_the_least_wish_of_its_window() -> None:
    policy = replace(WIDE, up_window_s=10.0)
    looks = [seen(t, workers(1), waiting=9, waiting_tokens=3_000 if t != 15 else 0) for t in range(30)]
    numbers = [d.desired for d in played(policy, looks)[0]]
    assert numbers == [1] * 10 + [6] * 20
    looks = [seen(t, workers(1), waiting=9, waiting_tokens=3_000 if t != 9 else 0) for t in range(30)]
    assert [d.desired for d in played(policy, looks)[0]] == [1] * 19 + [6] * 11


def test_steps_and_bounds_are_named() -> None:
    policy = PoolPolicy(max=5, step_up=2, step_down=1, down_window_s=0.0)
    busy = [seen(t, workers(1), waiting=9, waiting_tokens=9_000) for t in range(3)]
    decisions, history = played(policy, busy)
    assert [d.desired for d in decisions] == [3, 5, 5]
    assert decisions[0].limits == ("max 5", "step_up<=2")
    assert decisions[0].raw == 18.0
    calm = [seen(3 + t, workers(5)) for t in range(5)]
    assert [d.desired for d in played(policy, calm, history)[0]] == [4, 3, 2, 1, 1]


def test_one_worker_stays_until_the_pool_was_idle_for_long() -> None:
    decisions, _ = played(WIDE, [seen(t, workers(3)) for t in range(302)])
    numbers = [d.desired for d in decisions]
    assert numbers == [3] * 60 + [1] * 240 + [0] * 2
    assert decisions[300].action is Action.DOWN
    assert decisions[300].reason.endswith("idle 300 s >= 300 s")


def test_initial_stays_until_idle_for_long_and_does_not_come_back() -> None:
    policy = replace(WIDE, initial=2, idle_timeout_s=100.0)
    decisions, history = played(policy, [seen(0), *(seen(t, workers(2)) for t in range(1, 102))])
    assert [decisions[n].desired for n in (0, 99, 100)] == [2, 2, 0]
    woken, _ = played(policy, [seen(200), seen(201, waiting=1, waiting_tokens=1)], history)
    assert [d.desired for d in woken] == [0, 1]


def test_a_lower_max_applies_at_once() -> None:
    looks = [seen(0, workers(8), waiting=9, waiting_tokens=9_000)]
    _, history = played(WIDE, looks)
    decision, _ = decide(seen(1, workers(18), waiting=9, waiting_tokens=9_000), replace(WIDE, max=3), history)
    assert (decision.desired, decision.action, decision.limits) == (3, Action.DOWN, ("max 3",))


def test_floors_hold_by_the_clock() -> None:
    # The tests begin on a Friday at 08:00.
    policy = replace(
        WIDE, floors=(Floor((0, 1, 2, 3, 4), 8 * 60, 18 * 60, 2), Floor((4,), 22 * 60, 6 * 60, 3), Floor((), 0, 1, 1))
    )
    hours = {0: 2, 9: 2, 10: 0, 13.9: 0, 14: 3, 21: 3, 22: 0, 24: 0, 38: 0, 16: 3, 64: 1}
    for hour, least in hours.items():
        assert decide(seen(hour * 3_600), policy, History())[0].desired == least, hour
    assert decide(seen(0), replace(policy, max=1), History())[0].desired == 1


def test_a_blind_tick_holds_what_was_decided() -> None:
    decisions, history = played(WIDE, [seen(0, waiting=40, waiting_tokens=4_000), seen(1, blind="Redis does not answer")])
    assert (decisions[1].desired, decisions[1].action, decisions[1].tell) == (8, Action.HOLD, True)
    assert "Redis does not answer" in decisions[1].reason
    blind = seen(400, (), blind="Redis does not answer", waiting=10_000, waiting_tokens=10**9)
    again, after = decide(blind, WIDE, history)
    assert (again.desired, again.tell, again.replace) == (8, False, ())
    assert after == history


def test_what_runs_is_kept_for_one_window_after_a_restart() -> None:
    decisions, _ = played(replace(WIDE, idle_timeout_s=1.0), [seen(t, workers(7)) for t in range(62)])
    assert [d.desired for d in decisions] == [7] * 60 + [0] * 2


def test_a_paused_queue_asks_for_nobody_and_a_paused_pool_is_left_alone() -> None:
    backlog = {"waiting": 40, "waiting_tokens": 4_000, "oldest_wait_s": 50.0}
    decision, _ = decide(seen(0, workers(1), queue_paused=True, **backlog), WIDE, History())
    assert (decision.desired, decision.action) == (1, Action.HOLD)
    assert decision.reason.endswith("the queue is paused with 40 waiting")
    assert decide(seen(0, (), queue_paused=True, **backlog), WIDE, History())[0].desired == 0
    decision, _ = decide(seen(0, workers(3), **backlog), replace(WIDE, paused=True, max=2), History())
    assert (decision.desired, decision.action, decision.limits) == (3, Action.HOLD, ("paused",))


@pytest.mark.parametrize(
    ("cold", "age_s", "late"),
    [
        ((20.0, 25.0), 75.0, False),
        ((20.0, 25.0), 75.5, True),
        ((0.1, 0.2), 9.0, False),
        (None, 599.0, False),
        (None, 601.0, True),
    ],
)
def test_a_start_of_three_times_its_p90_has_failed(cold: tuple[float, float] | None, age_s: float, late: bool) -> None:
    there = workers(1) + workers(1, Phase.LOADING, age_s=age_s)
    _, history = decide(seen(0, workers(2)), WIDE, History())
    decision, _ = decide(seen(1, there, cold_start_s=cold), WIDE, history)
    assert decision.replace == (("loading-0",) if late else ())
    assert decision.desired == 2
    assert ("1 failed to start" in decision.reason) is late


def test_a_failed_worker_is_replaced_with_ever_longer_pauses() -> None:
    broken = SeenWorker("w", Phase.FAILED, 5.0, error="no such model")
    _, history = decide(seen(0, workers(1)), replace(WIDE, min=1), History())
    looks = [seen(t, (broken,), waiting=1, waiting_tokens=10) for t in range(1, 200)]
    decisions, _ = played(replace(WIDE, min=1), looks, history)
    assert [n + 1 for n, d in enumerate(decisions) if d.replace] == [1, 31, 91]
    assert all(d.action is Action.BLOCKED and d.desired == 0 for d in decisions if not d.replace)
    assert [n + 1 for n, d in enumerate(decisions) if d.tell] == [1, 2, 31, 32, 91, 92]
    assert "no such model" in decisions[1].reason


def test_what_cannot_be_placed_is_said_once() -> None:
    looks = [
        seen(t, workers(2), waiting=40, waiting_tokens=4_000, unplaceable=f"largest free {5 + t / 10} GiB, 14 needed")
        for t in range(30)
    ]
    decisions, history = played(WIDE, looks)
    assert {(d.desired, d.action) for d in decisions} == {(2, Action.BLOCKED)}
    assert [d.tell for d in decisions] == [True] + [False] * 29
    assert decisions[0].reason.endswith("8 wanted, 2 there: largest free 5.0 GiB, 14 needed")
    decision, _ = decide(seen(30, workers(2), waiting=40, waiting_tokens=4_000), WIDE, history)
    assert (decision.desired, decision.action) == (8, Action.UP)


def test_a_failed_worker_that_cannot_be_placed_is_left() -> None:
    refused = SeenWorker("w", Phase.FAILED, 5.0, error="no GPU has room")
    looks = [seen(t, (*workers(1), refused), waiting=40, waiting_tokens=4_000, unplaceable="no GPU has room") for t in range(50)]
    assert all(d.replace == () and d.desired == 1 for d in played(WIDE, looks)[0])


def test_who_drains_is_no_capacity() -> None:
    _, history = decide(seen(0, workers(2)), WIDE, History())
    there = workers(1) + workers(1, Phase.DRAINING)
    decision, _ = decide(seen(1, there, waiting=9, waiting_tokens=1_000), WIDE, history)
    assert decision.desired == 2
    assert decision.reason.endswith("1 there, 2 wanted")


def test_a_dead_worker_is_missed_without_a_turn() -> None:
    _, history = decide(seen(0, workers(3)), WIDE, History())
    decision, _ = decide(seen(1, workers(2)), WIDE, history)
    assert (decision.desired, decision.action) == (3, Action.HOLD)


def test_a_second_turn_waits_for_a_minute() -> None:
    policy = replace(WIDE, down_window_s=0.0)
    high, low = {"waiting": 9, "waiting_tokens": 4_000}, {"running": 1}
    looks = [seen(t, workers(8), **(low if 5 <= t < 8 else high)) for t in range(80)]
    decisions, _ = played(policy, [seen(0, workers(1), **high), *looks[1:]])
    numbers = [d.desired for d in decisions]
    assert numbers == [8] * 5 + [1] * 60 + [8] * 15
    assert decisions[10].limits == ("one turn in 60 s",)


def test_equal_holds_are_told_once() -> None:
    decisions, _ = played(WIDE, [seen(t, workers(2), running=1) for t in range(50)])
    assert [d.tell for d in decisions] == [True] + [False] * 49


def test_the_clock_of_the_tests() -> None:
    assert BEGIN_S % 86_400 == 8 * 3_600
