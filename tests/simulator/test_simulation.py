"""A run as a whole: nothing is lost, nothing is held that has no room, and the same seed gives the same run."""

import math
from collections.abc import Sequence

import pytest

from dispatch.scores import Strategy
from penstock.simulator.fleet import Member, fleet_of
from penstock.simulator.simulation import BASELINES, Simulation
from penstock.simulator.state import Conditions, Outcome, Trouble
from penstock.simulator.trace import Arrival, gathered, made_up, scaled

ALL = [*BASELINES, *map(str, Strategy)]
TROUBLES = {
    "calm": (),
    "killed": (Trouble("kill", 4.0, 3.0, every=True),),
    "gone for long": (Trouble("kill", 4.0, 30.0, "H200-1"),),
    "frozen": (Trouble("freeze", 5.0, 10.0, every=True),),
    "frozen briefly": (Trouble("freeze", 3.0, 1.0, "H200-1"), Trouble("freeze", 9.0, 4.0, "A100-1")),
}


def mean_e2e_s(outcome: Outcome) -> float:
    return sum(job.ended_at - job.arrival.at_s for job in outcome.jobs) / len(outcome.jobs)


def ttft_p99_s(outcome: Outcome) -> float:
    return sorted(job.first_at - job.arrival.at_s for job in outcome.jobs)[int(0.99 * len(outcome.jobs))]


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_every_request_ends_once_and_in_order(strategy: str, trouble: str, trace: list[Arrival], fleet: Sequence[Member]) -> None:
    simulation = Simulation(trace, fleet, strategy, Conditions(troubles=TROUBLES[trouble]))
    outcome = simulation.run()
    assert [job.arrival for job in outcome.jobs] == trace
    for job in outcome.jobs:
        assert job.arrival.at_s < job.first_at <= job.ended_at < math.inf
    assert sum(outcome.granted) == len(trace) + outcome.moved
    for w in simulation.workers:
        assert not w.begun
        if w.alive and not w.inbox:
            assert (w.load.held, w.load.used_tokens, w.load.prefill_tokens) == (0, 0, 0)


@pytest.mark.parametrize("strategy", ALL)
def test_nobody_holds_more_than_its_memory(strategy: str, fleet: Sequence[Member]) -> None:
    """A burst of 2,000 is more than the fleet can hold at once."""
    burst = [Arrival(0.0, a.prompt_tokens, a.answer_tokens) for a in made_up(2_000, seed=5)]
    outcome = Simulation(burst, fleet, strategy, Conditions()).run()
    assert max(outcome.most_held) <= 1.0
    assert max(outcome.most_held) > 0.5


def test_the_engine_never_uses_more_kv_than_was_granted(fleet: Sequence[Member]) -> None:
    burst = [Arrival(0.0, a.prompt_tokens, a.answer_tokens) for a in made_up(500, seed=5)]
    simulation = Simulation(burst, fleet, "pull", Conditions())
    checked = 0
    step = simulation.begin

    def begin_and_look(now: float, place: int, index: int) -> None:
        nonlocal checked
        step(now, place, index)
        w = simulation.workers[place]
        assert w.batch.held_tokens(now) <= w.load.used_tokens <= w.load.limit_tokens
        checked += 1

    simulation._handlers[0] = begin_and_look
    simulation.run()
    assert checked == 500


@pytest.mark.parametrize("strategy", ["pull", "greedy", "power_of_two", "session"])
def test_the_same_seed_gives_the_same_run(strategy: str, trace: list[Arrival], fleet: Sequence[Member]) -> None:
    def ends(seed: int) -> list[float]:
        conditions = Conditions(seed=seed, troubles=TROUBLES["killed"])
        return [job.ended_at for job in Simulation(trace, fleet, strategy, conditions).run().jobs]

    assert ends(1) == ends(1)
    assert ends(1) != ends(2)


def test_a_lone_request_takes_its_steps_and_its_wake_up() -> None:
    (member,) = fleet_of("L40S")
    gpu = member.gpu
    (job,) = Simulation([Arrival(0.0, 3_000, 50)], (member,), "pull", Conditions()).run().jobs
    prefill_s = 2 * gpu.step_s + 3_000 / gpu.prefill_tokens_per_s + gpu.per_sequence_s
    assert job.first_at == pytest.approx(0.0003 + prefill_s)
    assert job.ended_at == pytest.approx(0.0003 + prefill_s + 49 * (gpu.step_s + gpu.per_sequence_s))


def test_weights_and_knowledge_beat_turns_and_luck(trace: list[Arrival], fleet: Sequence[Member]) -> None:
    means = {name: mean_e2e_s(Simulation(trace, fleet, name, Conditions()).run()) for name in ALL}
    assert means["pull"] <= 1.05 * means["oracle"]
    assert means["pull"] <= 0.6 * means["greedy"]
    assert means["weighted_round_robin"] < means["round_robin"]
    assert means["weighted_least_connections"] < means["least_connections"] < means["round_robin"]
    assert means["power_of_two"] < means["round_robin"]


def test_pull_cuts_the_tail_of_the_first_token(trace: list[Arrival], fleet: Sequence[Member]) -> None:
    tails = {name: ttft_p99_s(Simulation(trace, fleet, name, Conditions()).run()) for name in ("pull", "oracle")}
    assert tails["pull"] < tails["oracle"]


@pytest.mark.parametrize("strategy", ["least_loaded", "least_loaded_utilisation", "least_loaded_waiting"])
def test_reports_that_are_older_are_worse(strategy: str, trace: list[Arrival], fleet: Sequence[Member]) -> None:
    """All run to who was idle when it last reported."""

    def tail_s(heartbeat_s: float) -> float:
        return ttft_p99_s(Simulation(trace, fleet, strategy, Conditions(heartbeat_s=heartbeat_s)).run())

    assert tail_s(0.05) < tail_s(1.0) < tail_s(5.0)


def test_what_a_dead_worker_held_goes_on_elsewhere_after_its_lease() -> None:
    fleet = fleet_of("A100*2")
    trace = [Arrival(0.0, 100, 2_000), Arrival(0.0, 100, 2_000)]
    calm = Simulation(trace, fleet, "pull", Conditions()).run()
    killed = Simulation(trace, fleet, "pull", Conditions(troubles=(Trouble("kill", 5.0, 100.0, "A100-1"),))).run()
    assert killed.moved == 1
    (lost,) = [job for job in killed.jobs if job.attempt == 2]
    alone_s = calm.jobs[lost.index].ended_at
    assert lost.first_at == calm.jobs[lost.index].first_at
    assert alone_s + 8.9 < lost.ended_at < alone_s + 10.5
    assert lost.worker == 1


def test_a_grant_to_a_dead_worker_is_given_back_after_two_seconds() -> None:
    fleet = fleet_of("H200,A100")
    trace = [Arrival(0.0, 10, 2), Arrival(5.1, 100, 100)]
    killed = Simulation(trace, fleet, "pull", Conditions(troubles=(Trouble("kill", 5.0, 100.0, "H200-1"),))).run()
    late = killed.jobs[1]
    assert late.attempt == 2
    assert late.worker == 1
    assert 7.1 < late.first_at < 7.2


def test_bursts_wait_for_the_end_of_their_span() -> None:
    trace = scaled(made_up(100, seed=1), 10.0)
    for before, after in zip(trace, gathered(trace, 5.0), strict=True):
        assert 0.0 <= after.at_s - before.at_s < 5.0
        assert after.at_s % 5.0 == 0.0
