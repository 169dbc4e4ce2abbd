"""What each strategy prefers, said once in plain cases."""

from dataclasses import replace

import pytest

from dispatch.scores import BOUND, CANDIDATES, Load, Need, Strategy, choose, has_room, looked_at, turns, two_picks

FAST = Load("fast", 800_000, 0, 0, 512, 5_755.0, 30_000.0)
SLOW = Load("slow", 40_000, 0, 0, 256, 864.0, 3_000.0)
NEED = Need(1_000, 1_200)


def chosen(strategy: Strategy, *parked: Load, need: Need = NEED) -> str | None:
    load = choose(strategy, parked, need)
    return load and load.worker


@pytest.mark.parametrize("strategy", Strategy)
def test_nobody_without_room_is_chosen(strategy: Strategy) -> None:
    full = replace(SLOW, used_tokens=39_000)
    busy = replace(FAST, held=512)
    assert not has_room(full, NEED.cost_tokens)
    assert not has_room(busy, NEED.cost_tokens)
    assert chosen(strategy, full, busy) is None
    assert chosen(strategy) is None
    assert chosen(strategy, full, replace(busy, held=511)) == "fast"


@pytest.mark.parametrize("strategy", Strategy)
def test_the_order_of_the_parked_says_nothing(strategy: Strategy) -> None:
    parked = [replace(SLOW, worker=f"w{i}", held=i % 3, turns=float(i % 4), last_granted=i % 5, waiting=i % 2) for i in range(20)]
    assert chosen(strategy, *parked) == chosen(strategy, *reversed(parked))


def test_pull_goes_to_the_fast_until_its_wait_outweighs_it() -> None:
    assert chosen(Strategy.PULL, FAST, SLOW) == "fast"
    assert chosen(Strategy.PULL, replace(FAST, prefill_tokens=3_000), SLOW) == "fast"
    assert chosen(Strategy.PULL, replace(FAST, prefill_tokens=90_000), SLOW) == "slow"


def test_pull_spares_the_many_a_long_prompt() -> None:
    crowded = replace(FAST, held=60)
    medium = replace(SLOW, worker="medium", limit_tokens=400_000, weight=2_780.0, prefill_weight=10_000.0)
    assert chosen(Strategy.PULL, crowded, medium, need=Need(10, 100)) == "medium"
    assert chosen(Strategy.PULL, replace(crowded, held=20), medium, need=Need(10, 100)) == "fast"
    assert chosen(Strategy.PULL, replace(crowded, held=20), medium, need=Need(8_000, 8_100)) == "medium"
    assert chosen(Strategy.PULL, FAST, medium, need=Need(8_000, 8_100)) == "fast"


def test_pull_compares_only_the_first_few_with_room() -> None:
    parked = [replace(FAST, worker=f"w{i:02d}", held=i) for i in range(3 * CANDIDATES)]
    assert [load.worker for load in looked_at(Strategy.PULL, parked, NEED)] == [f"w{i:02d}" for i in range(CANDIDATES)]


def test_pull_without_a_measured_prefill_reckons_it() -> None:
    assert chosen(Strategy.PULL, replace(FAST, prefill_weight=0.0), replace(SLOW, prefill_weight=0.0)) == "fast"


def test_turns_connections_and_weights() -> None:
    a, b = (
        replace(FAST, worker="a", held=3, last_granted=9, turns=10 / FAST.weight),
        replace(SLOW, worker="b", held=2, last_granted=8, turns=2 / SLOW.weight),
    )
    assert chosen(Strategy.ROUND_ROBIN, a, b) == "b"
    assert chosen(Strategy.LEAST_CONNECTIONS, a, b) == "b"
    assert chosen(Strategy.WEIGHTED_LEAST_CONNECTIONS, a, b) == "a"
    assert chosen(Strategy.WEIGHTED_ROUND_ROBIN, a, b) == "a"
    assert chosen(Strategy.WEIGHTED_ROUND_ROBIN, replace(a, turns=20 / FAST.weight), b) == "b"


@pytest.mark.parametrize(
    ("strategy", "field", "little", "much"),
    [
        (Strategy.LEAST_LOADED, "memory", 0.3, 0.8),
        (Strategy.LEAST_LOADED_UTILISATION, "utilisation", 0.0, 0.9),
        (Strategy.LEAST_LOADED_WAITING, "waiting", 0, 2),
    ],
)
def test_reports_count_before_anything_known(strategy: Strategy, field: str, little: float, much: float) -> None:
    crowded, idle = replace(FAST, held=400, **{field: little}), replace(SLOW, **{field: much})
    assert chosen(strategy, crowded, idle) == "fast"
    assert chosen(strategy, crowded, replace(idle, **{field: little})) == "slow"


def test_two_picks_differ_and_reach_everyone() -> None:
    seen = set()
    for i in range(300):
        first, second = two_picks(7, str(i))
        assert first != second
        seen |= {first, second}
    assert seen == set(range(7))
    assert two_picks(1, "any") == (0, 0)


def test_a_session_stays_moves_little_and_spills() -> None:
    parked = [replace(FAST, worker=f"w{i}") for i in range(8)]
    homes = {f"s{i}": chosen(Strategy.SESSION, *parked, need=replace(NEED, session=f"s{i}")) for i in range(200)}
    assert len(set(homes.values())) == 8
    fewer = [load for load in parked if load.worker != "w3"]
    for name, home in homes.items():
        now = chosen(Strategy.SESSION, *fewer, need=replace(NEED, session=name))
        assert now == home or home == "w3"
    hot, home = next((name, home) for name, home in homes.items() if home)
    crowded = [replace(load, held=20 if load.worker == home else 4) for load in parked]
    assert BOUND * (20 + 7 * 4 + 1) / 8 < 20 + 1
    assert chosen(Strategy.SESSION, *crowded, need=replace(NEED, session=hot)) != home


def test_a_session_goes_back_to_who_ran_it_last() -> None:
    parked = [replace(FAST, worker=f"w{i}", held=2) for i in range(8)]
    for load in parked:
        assert chosen(Strategy.SESSION, *parked, need=replace(NEED, session="s", last_worker=load.worker)) == load.worker


def test_who_joins_late_takes_no_flood() -> None:
    assert turns(0.0, 900 / SLOW.weight, SLOW.weight) == pytest.approx(899 / SLOW.weight)
    assert turns(0.0, 0.0, SLOW.weight) == 0.0
    assert turns(7.0, 1.0, 5.0) == 7.0, "who had more keeps it"
