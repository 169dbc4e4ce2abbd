"""Which orders an agent believes, case by case."""

import pytest

from autoscaler.agent.obeying import Obedience, Trust, Verdict
from dispatch.scaling import Leadership, Orders

NOTHING, KEEPING, WHOLLY = Verdict.NOTHING, Verdict.KEEPING, Verdict.WHOLLY


class Agent:
    """One that carried out orders of epoch 5, in the history `h`."""

    def __init__(self, *, carried_out: bool = True) -> None:
        self.obedience = Obedience(10.0)
        self.obedience.remember(5 if carried_out else 0, Trust(5, "h") if carried_out else Trust())

    def hears(
        self,
        epoch: int,
        history: str = "h",
        *,
        lacking: bool = True,
        leads: bool = True,
        led_by: int | None = None,
        at: float = 0.0,
    ) -> Verdict:
        leadership = Leadership("as-1", epoch if led_by is None else led_by, leads)
        return self.obedience.judge(Orders("g", epoch), history, leadership, lacking=lacking, now=at)


@pytest.mark.parametrize(
    ("epoch", "history", "lacking", "verdict"),
    [
        (5, "h", True, WHOLLY),  # who was believed before may end what runs
        (6, "h", False, WHOLLY),  # the next leader, who names all that runs
        (6, "h", True, KEEPING),
        (5, "other", True, KEEPING),  # the same epoch, of a Redis with another past
        (5, "other", False, WHOLLY),
        (4, "h", False, NOTHING),
        (4, "other", True, NOTHING),
        (0, "h", True, NOTHING),
    ],
)
def test_at_the_first_look(epoch: int, history: str, lacking: bool, verdict: Verdict) -> None:
    assert Agent().hears(epoch, history, lacking=lacking) is verdict


def test_an_agent_that_carried_out_none_believes_all() -> None:
    assert Agent(carried_out=False).hears(3, "h") is WHOLLY


@pytest.mark.parametrize(("epoch", "before"), [(6, KEEPING), (4, NOTHING)])
def test_a_leader_that_led_on_is_believed(epoch: int, before: Verdict) -> None:
    agent = Agent()
    assert [agent.hears(epoch, at=at) for at in (0.0, 9.9, 10.0)] == [before, before, WHOLLY]
    assert agent.hears(epoch, at=10.1) is WHOLLY
    assert agent.obedience.epoch == epoch and not agent.obedience.doubts


def test_the_time_of_one_leader_does_not_count_for_another() -> None:
    agent = Agent()
    assert agent.hears(6, at=0.0) is KEEPING
    assert agent.hears(7, at=9.0) is KEEPING
    assert agent.hears(7, at=12.0) is KEEPING
    assert agent.hears(7, leads=False, at=18.0) is KEEPING
    assert agent.hears(7, at=25.0) is KEEPING, "its lease was over in between"
    assert agent.hears(7, led_by=8, at=40.0) is KEEPING, "another one leads, and gave no orders yet"


def test_after_redis_forgot_its_orders_the_same_epoch_is_another_one() -> None:
    agent = Agent()
    assert agent.hears(0) is NOTHING
    assert agent.hears(5) is KEEPING
