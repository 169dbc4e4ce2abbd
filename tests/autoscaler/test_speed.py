"""A worker's speed in cost."""

import pytest

from autoscaler.speed import work_tokens_per_s


def test_prompts_go_faster_than_answers() -> None:
    assert work_tokens_per_s(100.0, 1_000.0, 1.0) == pytest.approx(1_000.0)
    assert work_tokens_per_s(100.0, 1_000.0, 0.0) == pytest.approx(100.0)
    # 900 tokens in 0.9 s and 100 in 1 s.
    assert work_tokens_per_s(100.0, 1_000.0, 0.9) == pytest.approx(1_000 / 1.9)


@pytest.mark.parametrize(("prefilled", "share"), [(1_000.0, None), (0.0, 0.9)])
def test_what_is_not_known_leaves_the_weight(prefilled: float, share: float | None) -> None:
    assert work_tokens_per_s(100.0, prefilled, share) == 100.0
    assert work_tokens_per_s(0.0, prefilled, share) == 0.0
