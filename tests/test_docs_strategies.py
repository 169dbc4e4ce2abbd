"""docs/strategies.md tells each strategy and each reason, and no other."""

import re
from pathlib import Path

from dispatch.reasons import Impossible, Reason
from dispatch.scores import BOUND, Strategy

PAGE = (Path(__file__).parent.parent / "docs" / "strategies.md").read_text(encoding="utf-8")


def rows_of(head: str) -> set[str]:
    table = PAGE.split(head, 1)[1].split("\n\n", 1)[0]
    return set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))


def test_every_strategy_is_told() -> None:
    assert rows_of("| name |") == set(Strategy)
    assert f"{BOUND} times its share" in PAGE


def test_every_reason_is_told() -> None:
    assert rows_of("| code |") == set(Reason)
    assert all(f"`{why}`" in PAGE for why in Impossible)
