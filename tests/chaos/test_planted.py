"""The planted bugs fit the tree as it is: each edit finds its text, and leaves Python that compiles."""

import ast
import shutil
from pathlib import Path

import pytest

from chaos.invariants import INVARIANTS
from chaos.mutants import UNREADABLE, Verdict, as_line, hit, judgement, plant
from chaos.planted import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]


def test_there_are_enough_and_their_names_differ() -> None:
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 20


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_planted_bug_finds_its_place(mutant: Mutant, tmp_path: Path) -> None:
    copy = tmp_path / mutant.file
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / mutant.file, copy)
    plant(mutant, tmp_path)
    assert copy.read_text() != (ROOT / mutant.file).read_text()
    if copy.suffix == ".py":
        ast.parse(copy.read_text())


def test_a_bug_without_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("pass\n")
    with pytest.raises(ValueError, match="has no"):
        plant(Mutant("no such text", "a.py", "old", "new"), tmp_path)


TABLE = "### seed 1\n\n| requests | 40: 40 completed |\n| violations | 0 |\n\n"


def test_every_bug_names_promises_that_there_are() -> None:
    kinds = {name.partition("_")[0].upper() for name in (f.__name__ for f in INVARIANTS)}
    for mutant in MUTANTS:
        assert mutant.expects and set(mutant.expects) <= kinds, mutant.name


def test_a_run_is_judged_by_what_it_told() -> None:
    assert judgement(0, TABLE + "history: h\n") == []
    assert judgement(1, TABLE + "I4: a text is wrong\n    {}\nJ1: unknown\n    {}\nhistory: h\n") == [
        "I4: a text is wrong",
        "J1: unknown",
    ]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1, "Traceback (most recent call last):\n  boom\n"),  # it died: no violation was told
        (-1, TABLE + "history: h\n"),
        (2, "usage: ..."),
        (0, "### seed 1\n\nhistory: h\n"),  # nothing was asked
        (0, TABLE.replace("40", "3") + "history: h\n"),
        (0, TABLE),  # no history
        (0, ""),
    ],
)
def test_a_run_without_a_judgement_is_none(code: int, said: str) -> None:
    assert judgement(code, said) is None


def test_only_a_promise_that_the_bug_breaks_is_a_hit() -> None:
    bug = Mutant("a bug", "a.py", "", "", expects={"I4", "I11"})
    assert hit(bug, ["I1: stuck", "I4: a text is wrong"]) == "I4: a text is wrong"
    assert hit(bug, ["I1: stuck", "I14: overtaken", UNREADABLE]) == ""
    assert hit(bug, ["I11: timers are left"]) == "I11: timers are left"


def test_what_was_found_otherwise_is_told_and_not_counted() -> None:
    otherwise = Verdict(MUTANTS[0], False, 2, 3.0, "not found", "I14: overtaken")
    assert "NOT FOUND in 2 seeds, found otherwise: I14: overtaken" in as_line(otherwise)
