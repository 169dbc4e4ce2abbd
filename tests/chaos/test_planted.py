"""The planted bugs fit the tree as it is: each edit finds its text, and leaves Python that compiles."""

import ast
import shutil
from pathlib import Path

import pytest

from chaos.mutants import plant
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
