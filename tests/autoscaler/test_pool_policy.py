"""From settings to a policy; floors as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autoscaler.policy import Floor
from autoscaler.pool_policy import floor_of, policy_of
from dispatch.errors import PenstockError
from dispatch.scaling import PoolOverride, ScalingPolicy
from dispatch.settings_scale import PoolSettings

GOOD = {
    "mon-fri 08:00-18:00 2": Floor((0, 1, 2, 3, 4), 480, 1_080, 2),
    "sat,sun 22:00-06:00 1": Floor((5, 6), 1_320, 360, 1),
    "Fri-Mon,wed 8:00 - 9:30 10": Floor((0, 2, 4, 5, 6), 480, 570, 10),
    "00:00-24:00 3": Floor((), 0, 1_440, 3),
}
BAD = [
    "mon-fry 08:00-18:00 2",
    "mon-fri 8-18 2",
    "mon-fri 08:00-18:00",
    "08:00-25:00 1",
    "08:60-09:00 1",
    "",
    "08:00-18:00 -1",
    "8:00-08:00 1",
]


@pytest.mark.parametrize("text", GOOD)
def test_floors_as_people_write_them(text: str) -> None:
    settings = PoolSettings.model_validate({"floors": [text]})
    assert policy_of(settings, None).floors == (GOOD[text],)


@pytest.mark.parametrize("text", BAD)
def test_a_bad_floor_is_refused_where_it_is_set_and_where_it_is_read(text: str) -> None:
    with pytest.raises(ValidationError, match="like"):
        PoolSettings.model_validate({"floors": ["08:00-18:00 1", text]})
    with pytest.raises(PenstockError) as refused:
        floor_of(text)
    assert repr(text) in refused.value.message
    assert refused.value.param == "floors"


@given(st.from_regex(r"((mon|sat)(-(tue|sun))?(,wed)? )?[0-2]?[0-9]:[0-6][0-9]-[0-2]?[0-9]:[0-6][0-9] [0-9]", fullmatch=True))
def test_both_readers_agree(text: str) -> None:
    try:
        PoolSettings.model_validate({"floors": [text]})
        good = True
    except ValidationError:
        good = False
    try:
        floor_of(text)
        read = True
    except PenstockError:
        read = False
    assert good == read


def test_every_setting_arrives() -> None:
    given_ = {
        "min": 1, "max": 7, "initial": 2, "policies": ["utilisation", "latency"], "target_s": 9.0, "requests_per_worker": 3.0,
        "utilisation": 0.5, "ttft_s": 4.0, "up_window_s": 6.0, "down_window_s": 61.0, "step_up": 3, "step_down": 4,
        "idle_timeout_s": 31.0,
    }  # fmt: skip
    policy = policy_of(PoolSettings.model_validate(given_), None)
    assert policy.policies == (ScalingPolicy.UTILISATION, ScalingPolicy.LATENCY)
    assert {name: getattr(policy, name) for name in given_ if name != "policies"} == {
        name: value for name, value in given_.items() if name != "policies"
    }


def test_what_an_operator_set_counts_more() -> None:
    settings = PoolSettings(min=1, max=4, target_s=5.0)
    override = PoolOverride(min=2, max=8, target_s=1.0, paused=True)
    policy = policy_of(settings, override)
    assert (policy.min, policy.max, policy.target_s, policy.paused) == (2, 8, 1.0, True)
    assert policy_of(settings, PoolOverride(min=6)).max == 6
    assert policy_of(settings, PoolOverride(max=0)).min == 0
