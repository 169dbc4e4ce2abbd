"""Who goes first."""

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.seen import Phase, SeenWorker
from autoscaler.victims import victims
from tests.autoscaler.test_policy_properties import workers

POOL = (
    SeenWorker("much", Phase.READY, 50.0, held=3, left_tokens=900),
    SeenWorker("", Phase.READY, 50.0),
    SeenWorker("little", Phase.READY, 60.0, held=1, left_tokens=10),
    SeenWorker("idle-old", Phase.READY, 70.0),
    SeenWorker("idle-new", Phase.READY, 20.0),
    SeenWorker("loading-old", Phase.LOADING, 15.0),
    SeenWorker("loading-new", Phase.LOADING, 9.0),
    SeenWorker("starting-old", Phase.STARTING, 8.0),
    SeenWorker("starting-new", Phase.STARTING, 1.0),
    SeenWorker("broken", Phase.FAILED, 500.0),
    SeenWorker("going", Phase.DRAINING, 80.0),
)
ORDER = ("broken", "starting-new", "starting-old", "loading-new", "loading-old", "idle-new", "idle-old", "little", "much")


def test_least_left_to_do_goes_first() -> None:
    assert victims(POOL, 100) == ORDER


@given(st.integers(-3, 20), st.permutations(POOL))
def test_the_order_they_come_in_does_not_matter(n: int, pool: list[SeenWorker]) -> None:
    assert victims(pool, n) == ORDER[: max(0, n)]


@given(workers(), st.integers(0, 8))
def test_never_one_that_was_not_started_here_and_never_too_many(pool: tuple[SeenWorker, ...], n: int) -> None:
    gone = victims(pool, n)
    able = {w.launch for w in pool if w.launch and w.phase is not Phase.DRAINING}
    assert set(gone) <= able
    assert len(gone) == min(n, len(able))
