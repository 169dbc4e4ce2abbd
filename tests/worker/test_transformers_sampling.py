"""Sampling by noise and argmax draws from the very distribution that temperature, top_k and top_p describe."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dispatch.messages import Sampling
from worker.engines.transformers_sampling import _Noise, _Temperature, _TopK, _TopP, arguments

DRAWS = 10_000
ODDS = [0.5, 0.25, 0.15, 0.07, 0.03]


def _state(sampling: Sampling, seed: int, position: int) -> Any:
    request = SimpleNamespace(logit_processor_kwargs=arguments(sampling, seed), position_offset=position)
    return SimpleNamespace(state=request)


def draw(sampling: Sampling, *, one_seed: bool) -> list[float]:
    """How often each of five tokens is drawn: at many positions of one request, or by many requests at one position."""
    states = [_state(sampling, seed=9, position=i) if one_seed else _state(sampling, seed=i, position=3) for i in range(DRAWS)]
    scores: Any = torch.log(torch.tensor(ODDS)).repeat(DRAWS, 1)
    for processor in (_Temperature(), _TopK(), _TopP(), _Noise()):
        scores = processor(scores, processor.prepare_tensor_args(states))
    counts = torch.bincount(scores.argmax(-1), minlength=len(ODDS))
    return [int(count) / DRAWS for count in counts]


@pytest.mark.parametrize("one_seed", [True, False])
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1, temperature=1.0), ODDS),
        (Sampling(1, temperature=0.5), [p * p / sum(q * q for q in ODDS) for p in ODDS]),
        (Sampling(1, temperature=1.0, top_k=2), [2 / 3, 1 / 3, 0, 0, 0]),
        (Sampling(1, temperature=1.0, top_p=0.7), [2 / 3, 1 / 3, 0, 0, 0]),
        (Sampling(1, temperature=1.0, top_p=0.8), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0, 0]),
        (Sampling(1, temperature=0.0, top_k=3, top_p=0.9), [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should_be(sampling: Sampling, expected: list[float], one_seed: bool) -> None:
    # Five standard deviations of a share of 10,000 draws.
    assert draw(sampling, one_seed=one_seed) == pytest.approx(expected, abs=0.025)


def test_noise_never_decides_alone_in_a_large_vocabulary() -> None:
    state = SimpleNamespace(
        state=SimpleNamespace(logit_processor_kwargs=arguments(Sampling(1, temperature=1.0), 1), position_offset=0)
    )
    scores = torch.zeros(1, 300_000)
    noise = _Noise()(scores, _Noise().prepare_tensor_args([state]))
    assert bool(torch.isfinite(noise).all())
    assert noise.unique().numel() > 250_000  # tokens get noise of their own
