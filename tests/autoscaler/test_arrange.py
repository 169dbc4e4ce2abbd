"""From a number of workers to the very workers."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.arrange import adopt, arrange
from autoscaler.seen import Phase, SeenWorker
from dispatch.scaling import Launch, LaunchReport, LaunchState, PoolOrders

P = Phase


def orders_of(workers: Sequence[SeenWorker], *retiring: str) -> PoolOrders:
    return PoolOrders("p", "m", tuple(Launch(w.launch, "p") for w in workers if w.launch), retiring)


def w(name: str, phase: Phase = P.READY, held: int = 0, left: int = 0, age_s: float = 60.0) -> SeenWorker:
    return SeenWorker(name, phase, age_s, held=held, left_tokens=left, drained=phase is P.DRAINING and not held)


def names(orders: PoolOrders) -> list[str]:
    return [launch.id for launch in orders.launches]


class Make:
    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def __call__(self) -> Launch:
        return Launch(f"new-{next(self._numbers)}", "p")


def test_more_are_added() -> None:
    done = arrange(orders_of([w("a")]), [w("a")], {}, 3, (), Make())
    assert names(done.orders) == ["a", "new-1", "new-2"]
    assert done.added == ("new-1", "new-2")


def test_the_one_with_least_left_to_do_drains_and_stays_until_it_is_empty() -> None:
    workers = [w("a", left=900, held=3), w("b", left=10, held=1)]
    done = arrange(orders_of(workers), workers, {}, 1, (), Make())
    assert (done.retired, done.ended) == (("b",), ())
    assert names(done.orders) == ["a", "b"]
    assert done.orders.retiring == ("b",)
    busy = [workers[0], w("b", P.DRAINING, held=1)]
    still = arrange(done.orders, busy, {}, 1, (), Make())
    assert still.orders == done.orders
    empty = [workers[0], w("b", P.DRAINING, held=0)]
    over = arrange(still.orders, empty, {}, 1, (), Make())
    assert (over.ended, names(over.orders), over.orders.retiring) == (("b",), ["a"], ())


def test_one_that_has_not_said_that_it_drains_is_not_ended() -> None:
    """A grant may be on its way to it."""
    workers = [w("a"), SeenWorker("b", P.DRAINING, 60.0, held=0)]
    done = arrange(orders_of(workers, "b"), workers, {}, 1, (), Make())
    assert (done.ended, done.orders.retiring) == ((), ("b",))


def test_one_that_drains_is_kept_before_one_is_added() -> None:
    workers = [w("a"), w("b", P.DRAINING, held=1), w("c", P.DRAINING, held=2)]
    done = arrange(orders_of(workers, "b", "c"), workers, {}, 3, (), Make())
    assert done.added == ()
    assert sorted(done.kept) == ["b", "c"]
    assert done.orders.retiring == ()
    one = arrange(orders_of(workers, "b", "c"), workers, {}, 2, (), Make())
    assert (one.kept, one.orders.retiring) == (("c",), ("b",))


def test_what_never_became_a_worker_goes_at_once() -> None:
    workers = [w("a"), w("b", P.LOADING, age_s=3)]
    done = arrange(orders_of(workers), workers, {}, 1, (), Make())
    assert (done.ended, done.retired, names(done.orders)) == (("b",), (), ["a"])


def test_who_failed_keeps_its_place_until_it_is_given_up() -> None:
    workers = [w("a"), w("b", P.FAILED)]
    kept = arrange(orders_of(workers), workers, {}, 1, (), Make(), blocked=True)
    assert names(kept.orders) == ["a", "b"], "else it would be tried again with every tick"
    given_up = arrange(orders_of(workers), workers, {}, 2, ("b",), Make())
    assert (names(given_up.orders), given_up.replaced) == (["a", "new-1"], ("b",))
    blocked = arrange(orders_of([w("b", P.FAILED)]), [w("b", P.FAILED)], {}, 0, (), Make(), blocked=True)
    assert names(blocked.orders) == ["b"]
    none = arrange(orders_of([w("b", P.FAILED)]), [w("b", P.FAILED)], {}, 0, (), Make())
    assert names(none.orders) == []


def test_what_went_with_its_host_is_replaced() -> None:
    workers = [w("a"), w("b", P.STARTING)]
    reports = {"b": LaunchReport("b", "p", LaunchState.GONE)}
    done = arrange(orders_of(workers), workers, reports, 2, (), Make())
    assert (done.replaced, names(done.orders)) == (("b",), ["a", "new-1"])


def test_workers_nobody_here_started_count_and_never_go() -> None:
    workers = [w("a"), w(""), w("")]
    assert names(arrange(orders_of(workers), workers, {}, 3, (), Make()).orders) == ["a"]
    assert arrange(orders_of(workers), workers, {}, 2, (), Make()).retired == ("a",)
    assert arrange(orders_of([]), workers[1:], {}, 1, (), Make()).orders == orders_of([])


PLAIN = Launch("", "p", {"model": "m"}, need_bytes=7)
PHASES = st.sampled_from(list(Phase))
FLEETS = st.lists(st.tuples(PHASES, st.integers(0, 3), st.booleans()), max_size=8)


@given(FLEETS, st.integers(0, 10), st.sets(st.integers(0, 7)), st.booleans())
def test_it_always_gives_the_number_and_loses_nobody(
    fleet: list[tuple[Phase, int, bool]], desired: int, failed: set[int], blocked: bool
) -> None:
    workers = [w(f"w{n}" if ours else "", phase, held) for n, (phase, held, ours) in enumerate(fleet)]
    retiring = [x.launch for x in workers if x.launch and x.phase is P.DRAINING]
    orders = orders_of(workers, *retiring)
    given_up = [f"w{n}" for n in failed]
    done = arrange(orders, workers, {}, desired, given_up, Make(), blocked=blocked)
    broken = {x.launch for x in workers if x.phase is P.FAILED}
    foreign = sum(1 for x in workers if not x.launch and x.phase in (P.STARTING, P.LOADING, P.READY))
    active = [n for n in names(done.orders) if n not in done.orders.retiring and n not in broken]
    assert len(active) == max(0, desired - foreign)
    assert set(done.orders.retiring) <= set(names(done.orders))
    before, after = set(names(orders)), set(names(done.orders))
    for name in before - after:
        gone = next(x for x in workers if x.launch == name)
        idle = gone.phase in (P.STARTING, P.LOADING, P.FAILED) or (gone.phase is P.DRAINING and gone.held == 0)
        assert idle or gone.drained or name in given_up, "who holds something drains first"
    assert after - before == set(done.added)
    again = arrange(
        done.orders, [x for x in workers if not x.launch or x.launch in after], {}, desired, (), Make(), blocked=blocked
    )
    assert not set(again.added) & before


def test_names_that_the_hands_give_take_the_places_of_the_orders() -> None:
    before = PoolOrders("p", "m", (Launch("l-1", "p", ordered_at_ms=5), Launch("l-2", "p", ordered_at_ms=6)), ())
    one = {"pod-a": LaunchReport("pod-a", "p", LaunchState.RUNNING, since_ms=7)}
    found = adopt(before, one, PLAIN, names_itself=True, known=True)
    assert names(found) == ["pod-a", "l-1"]
    both = {**one, "pod-b": LaunchReport("pod-b", "p", LaunchState.STARTING)}
    assert names(adopt(found, both, PLAIN, names_itself=True, known=True)) == ["pod-a", "pod-b"]
    assert names(adopt(found, {}, PLAIN, names_itself=True, known=True)) == ["pod-a", "l-1"], "not seen yet: still awaited"


def test_what_runs_is_taken_over_only_where_no_orders_are_known() -> None:
    runs = {"l-9": LaunchReport("l-9", "p", LaunchState.RUNNING), "x": LaunchReport("x", "other", LaunchState.RUNNING)}
    nothing = PoolOrders("p", "m")
    taken = adopt(nothing, runs, PLAIN, names_itself=False, known=False).launches[0]
    assert (taken.worker, taken.need_bytes) == ({"model": "m"}, 7), "what its pool orders, where the hands do not say"
    said = {"l-9": LaunchReport("l-9", "p", LaunchState.RUNNING, worker={"model": "x"}, need_bytes=3)}
    taken = adopt(nothing, said, PLAIN, names_itself=False, known=False).launches[0]
    assert (taken.worker, taken.need_bytes) == ({"model": "x"}, 3)
    assert names(adopt(nothing, runs, PLAIN, names_itself=False, known=False)) == ["l-9"]
    assert names(adopt(nothing, runs, PLAIN, names_itself=False, known=True)) == []
