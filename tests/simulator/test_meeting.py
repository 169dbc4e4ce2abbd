"""The simulator keeps the parked pulls in order; it must choose what `scores.choose` chooses."""

import random

import pytest

from dispatch import scores
from dispatch.scores import Load, Need, Strategy
from penstock.simulator.meeting import meeting_of


def load(rng: random.Random, name: str) -> Load:
    slots = rng.choice([4, 32, 256])
    limit_tokens = rng.choice([20_000, 400_000])
    return Load(
        worker=name,
        limit_tokens=limit_tokens,
        used_tokens=rng.randrange(limit_tokens + 1),
        held=rng.randrange(slots + 1),
        slots=slots,
        weight=rng.choice([864.0, 2_780.1, 5_755.4]),
        prefill_weight=rng.choice([0.0, 3_000.0, 30_000.0]),
        prefill_tokens=rng.choice([0, rng.randrange(20_000)]),
        turns=rng.randrange(50) / rng.choice((1.0, 3.0, 700.0)),
        last_granted=rng.randrange(100),
        memory=rng.choice([0.1, rng.random()]),
        utilisation=rng.choice([0.0, 1.0, rng.random()]),
        waiting=rng.randrange(4),
    )


@pytest.mark.parametrize("strategy", Strategy)
def test_the_order_kept_gives_the_choice_defined(strategy: Strategy) -> None:
    rng = random.Random(strategy)
    meeting = meeting_of(strategy)
    names = [f"w-{i:02d}" for i in range(24)]
    parked: dict[int, Load] = {}
    last: dict[str, str] = {}
    met = 0
    for turn in range(1_500):
        place = rng.randrange(len(names))
        if rng.random() < 0.15:
            meeting.leave(place)
            parked.pop(place, None)
        else:
            parked[place] = load(rng, names[place])
            meeting.put(place, parked[place])
        session = f"s{rng.randrange(5)}"
        need = Need(rng.randrange(1, 9_000), rng.choice([100, 9_000, 300_000]), session, last.get(session, ""), str(turn))
        expected = scores.choose(strategy, list(parked.values()), need)
        chosen = meeting.choose(need)
        assert (names[chosen] if chosen is not None else None) == (expected.worker if expected else None)
        if expected:
            last[session] = expected.worker
            met += 1
    assert 500 < met < 1_500
