"""A small fleet and small traces: each run takes a fraction of a second."""

from collections.abc import Sequence

import pytest

from penstock.simulator.fleet import Member, capacity_requests_per_s, fleet_of
from penstock.simulator.trace import Arrival, made_up, scaled


@pytest.fixture
def fleet() -> tuple[Member, ...]:
    return fleet_of("H200,A100*2,A10*3")


@pytest.fixture
def trace(fleet: Sequence[Member]) -> list[Arrival]:
    """600 made-up conversations at 0.85 of what the fleet can do."""
    arrivals = made_up(600, seed=11)
    return scaled(arrivals, 0.85 * capacity_requests_per_s(fleet, arrivals))
