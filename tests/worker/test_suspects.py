"""Who is suspect when an engine dies: what it worked on, and in one that hung only what was there before it fell silent."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from worker.burial import suspects_of
from worker.life import Death


def held(**since_s: float) -> Any:
    """Executions that came to the engine so many seconds ago."""
    now = time.monotonic()
    return [
        SimpleNamespace(
            grant=SimpleNamespace(request=name), generating=True, generating_since=now - ago, crashed=True, is_ending=False
        )
        for name, ago in since_s.items()
    ]


@pytest.mark.parametrize(
    ("death", "suspects"),
    [
        (lambda now: Death("it segfaulted"), ["early", "late"]),
        (lambda now: Death("it was killed", own_fault=False), []),
        (lambda now: Death("no step for 10 s", hung=True, silent_since=now - 8.0), ["early"]),
        (lambda now: Death("no step for 10 s", hung=True, silent_since=now - 10.0), []),
    ],
)
async def test_who_is_suspect(death: Callable[[float], Death], suspects: list[str]) -> None:
    assert await suspects_of(held(early=9.0, late=3.0), death(time.monotonic())) == suspects
