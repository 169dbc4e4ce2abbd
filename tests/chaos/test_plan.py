"""A seed fixes the schedule, and every fault is in some schedule."""

import itertools

from chaos.faults import FAULTS, SENTINEL, SINGLE
from chaos.nemesis import plan


def test_a_seed_reproduces_its_schedule() -> None:
    assert plan(7, 180, SINGLE, gap_s=2, lease_s=2) == plan(7, 180, SINGLE, gap_s=2, lease_s=2)
    assert plan(7, 180, SINGLE, gap_s=2, lease_s=2) != plan(8, 180, SINGLE, gap_s=2, lease_s=2)


def test_ten_minutes_have_two_hundred_faults() -> None:
    for topology in (SINGLE, SENTINEL):
        assert all(len(plan(seed, 600, topology, gap_s=2.2, lease_s=2)) >= 200 for seed in range(5))


def test_every_fault_has_its_turn() -> None:
    names = {
        s.name
        for topology in (SINGLE, SENTINEL)
        for seed in range(5)
        for scaled in (False, True)
        for s in plan(seed, 600, topology, gap_s=2, lease_s=2, scaled=scaled)
    }
    assert names == set(FAULTS)


def test_what_does_not_scale_is_struck_as_it_always_was() -> None:
    plain = [s.name for seed in range(5) for s in plan(seed, 600, SINGLE, gap_s=2, lease_s=2)]
    assert plain and not any(FAULTS[name].scaled for name in plain)


def test_the_server_is_never_struck_without_a_pause() -> None:
    struck = [s for s in plan(3, 600, SINGLE, gap_s=1, lease_s=2) if FAULTS[s.name].alone]
    assert all(later.at_s - earlier.at_s >= 8 for earlier, later in itertools.pairwise(struck))


def test_a_stopped_worker_stays_stopped_for_longer_than_its_lease() -> None:
    stops = [s for s in plan(1, 600, SINGLE, gap_s=2, lease_s=2) if s.name == "stop-worker"]
    assert stops
    assert all(s.for_s >= 3 for s in stops)
