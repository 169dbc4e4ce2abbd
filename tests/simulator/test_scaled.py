"""A scaled fleet: cold starts, drains, what it costs; and the rules it is compared with."""

import math

import pytest

from autoscaler.policy import PoolPolicy
from autoscaler.seen import Phase, Seen, SeenWorker
from penstock.simulator.fleet import fleet_of
from penstock.simulator.scaled import Cold, Scaled, ScaledSimulation, Scaler
from penstock.simulator.scaled_report import scaled_row
from penstock.simulator.scalers import Decided, FixedRule, Keda
from penstock.simulator.state import Conditions
from penstock.simulator.trace import Arrival, made_up, scaled


class Script:
    """So many workers from these moments on."""

    def __init__(self, numbers: dict[float, int]) -> None:
        self._numbers = numbers
        self._begin_s: float | None = None

    def desired(self, seen: Seen) -> tuple[int, str]:
        self._begin_s = seen.at_s if self._begin_s is None else self._begin_s
        return [n for at_s, n in self._numbers.items() if at_s <= seen.at_s - self._begin_s][-1], ""


def run(trace: list[Arrival], scaler: Scaler, *, fleet: str = "A10*8", start_s: float = 20.0) -> Scaled:
    return ScaledSimulation(trace, fleet_of(fleet), "pull", Conditions(), scaler, Cold(start_s)).scale()


def test_a_worker_works_after_its_cold_start_and_costs_from_its_order() -> None:
    result = run([Arrival(0.0, 100, 10)], Script({0.0: 0, 5.0: 1}))
    assert result.delays_s == [25.0]
    assert result.gpu_s == pytest.approx(result.outcome.ended_at_s - 5.0)
    assert result.starts == 1


def test_a_retired_worker_ends_what_it_holds_first() -> None:
    trace = [Arrival(30.0, 100, 300), Arrival(200.0, 100, 10)]
    result = run(trace, Script({0.0: 1, 31.0: 0, 100.0: 1}))
    first = result.outcome.jobs[0]
    assert first.attempt == 1
    assert first.ended_at - first.arrival.at_s < 30.0
    stopped_s = math.ceil(first.ended_at)
    assert result.gpu_s == pytest.approx(stopped_s + result.outcome.ended_at_s - 100.0)


def test_a_draining_worker_is_taken_back_before_another_is_started() -> None:
    result = run([Arrival(30.0, 100, 1_000), Arrival(34.0, 100, 10)], Script({0.0: 1, 31.0: 0, 33.0: 1}))
    assert result.starts == 1
    assert result.delays_s == [0.0, 0.0]


def test_all_is_served_and_the_run_is_the_same_again() -> None:
    trace = scaled(made_up(400, seed=3), 3.0)
    policy = PoolPolicy(max=8, target_s=20.0, down_window_s=30.0, idle_timeout_s=30.0)
    result, again = run(trace, Decided(policy)), run(trace, Decided(policy))
    assert all(job.attempt == 1 and not math.isnan(job.ended_at) for job in result.outcome.jobs)
    assert result.gpu_s == again.gpu_s
    assert result.delays_s == again.delays_s
    row = scaled_row("decide", result, 40.0)
    assert row.attained > 0.9
    assert 1 < row.most_ready <= 8
    assert any(tick.reason.startswith("oldest wait") for tick in result.ticks)


def test_a_looser_target_costs_less() -> None:
    trace = scaled(made_up(400, seed=3), 3.0)
    tight, loose = (run(trace, Decided(PoolPolicy(max=8, target_s=target_s))) for target_s in (5.0, 60.0))
    assert loose.gpu_s < tight.gpu_s


def seen(at_s: float, waiting: int, ready: int) -> Seen:
    return Seen(at_s, waiting=waiting, workers=tuple(SeenWorker(str(n), Phase.READY, 99.0) for n in range(ready)))


def test_the_fixed_rule_goes_up_at_once_and_down_after_its_cooldown() -> None:
    rule = FixedRule(10, 60.0, 5)
    assert [rule.desired(seen(t, w, 0))[0] for t, w in ((0, 11), (1, 90), (2, 0), (60, 0), (61, 0))] == [2, 5, 5, 5, 0]


def test_keda_polls_for_the_first_and_the_autoscaler_adds_the_rest() -> None:
    keda = Keda(10, 50)
    numbers, now = {}, 0
    for t in range(400):
        now = keda.desired(seen(t, 0 if t < 5 or t > 60 else 200, now))[0]
        numbers[t] = now
    assert [numbers[t] for t in (5, 29)] == [0, 0]
    assert numbers[30] == 5  # one by KEDA, at most four more by the autoscaler
    assert numbers[45] == 10
    assert numbers[60] == 20
    assert numbers[300] == 20  # the peak of 300 s
    assert max(t for t, n in numbers.items() if n == 20) in range(345, 361)
    assert numbers[399] == 0


def test_keda_stays_within_its_tolerance() -> None:
    keda = Keda(100, 50)
    keda.desired(seen(0, 100, 0))
    assert keda.desired(seen(15, 100, 1))[0] == 1
    assert keda.desired(seen(30, 109, 1))[0] == 1
    assert keda.desired(seen(45, 111, 1))[0] == 2
