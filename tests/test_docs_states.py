"""The diagrams of docs/architecture.md and the table of docs/errors.md are printed from the code, and stay equal to it."""

from pathlib import Path

import pytest

from dispatch.diagrams import BLOCKS, main, rewritten
from dispatch.errors import ERROR_KINDS
from dispatch.states import REQUEST_TRANSITIONS, WORKER_TRANSITIONS

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "architecture.md"
EMPTY = """before
<!-- states:request -->
<!-- /states:request -->
between
<!-- states:worker -->
stale arrows
<!-- /states:worker -->
after
"""


@pytest.mark.parametrize("page", ["architecture.md", "errors.md"])
def test_the_page_shows_the_tables(page: str) -> None:
    assert main(["--check", str(DOCS / page)]) == 0, f"run: python -m dispatch.diagrams docs/{page}"


def test_every_error_is_on_its_page_with_its_status() -> None:
    page = (DOCS / "errors.md").read_text()
    for code, kind in ERROR_KINDS.items():
        assert f"| `{code}` | {kind.status} |" in page


@pytest.mark.parametrize(("name", "table"), [("request", REQUEST_TRANSITIONS), ("worker", WORKER_TRANSITIONS)])
def test_every_arrow_is_on_the_page(name: str, table: dict[str, dict[str, str]]) -> None:
    page = PAGE.read_text()
    for state, nexts in table.items():
        for after, cause in nexts.items():
            assert f"    {state} --> {after}: {cause}\n" in page
        if not nexts:
            assert f"    {state} --> [*]\n" in page
    assert BLOCKS[f"states:{name}"] in page


def test_it_rewrites_the_blocks_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(EMPTY)
    assert main(["--check", str(page)]) == 1
    assert page.read_text() == EMPTY
    assert main([str(page)]) == 0
    assert main(["--check", str(page)]) == 0
    words = page.read_text()
    assert words.startswith("before\n<!-- states:request -->\n```mermaid\nstateDiagram-v2\n")
    assert "```\n<!-- /states:request -->\nbetween\n" in words
    assert "stale arrows" not in words
    assert words.endswith("<!-- /states:worker -->\nafter\n")


def test_a_page_without_its_blocks_is_an_error() -> None:
    with pytest.raises(ValueError, match="nobody prints states:nobody"):
        rewritten(EMPTY.replace("states:worker", "states:nobody"))
    with pytest.raises(ValueError, match="/states:worker"):
        rewritten(EMPTY.replace("/states:worker", "end"))
    with pytest.raises(ValueError, match="no block"):
        rewritten("nothing here")
