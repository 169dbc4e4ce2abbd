"""`python -m dispatch.diagrams [--check] PAGE`: print the tables of states and errors into the marked blocks of a page.

A block stands between `<!-- NAME -->` and `<!-- /NAME -->`; the names are those of `BLOCKS`.
Never here: the tables (states.py, errors.py).
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dispatch.errors import ERROR_KINDS, ErrorKind
from dispatch.states import REQUEST_TRANSITIONS, WORKER_TRANSITIONS, as_mermaid


def _as_rows(kinds: Mapping[str, ErrorKind]) -> str:
    rows = ["| code | status | whose turn | again? | what it says |", "| --- | --- | --- | --- | --- |"]
    for code, kind in sorted(kinds.items(), key=lambda item: (item[1].status, item[0])):
        rows.append(f"| `{code}` | {kind.status} | {kind.fault} | {'yes' if kind.retryable else 'no'} | {kind.title} |")
    return "\n".join(rows) + "\n"


BLOCKS = {
    "states:request": f"```mermaid\n{as_mermaid(REQUEST_TRANSITIONS)}```\n",
    "states:worker": f"```mermaid\n{as_mermaid(WORKER_TRANSITIONS)}```\n",
    "errors": _as_rows(ERROR_KINDS),
}
_BEGIN = re.compile(r"<!-- ([a-z:]+) -->")


def rewritten(page: str) -> str:
    """The page with its blocks printed anew. Raises ValueError when it has none, or one that is unknown or has no end."""
    names = _BEGIN.findall(page)
    if not names:
        raise ValueError("the page has no block to print into")
    for name in names:
        if name not in BLOCKS:
            raise ValueError(f"nobody prints {name}; there are {', '.join(BLOCKS)}")
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        parts = re.split(f"{begin}.*?{end}", page, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"the page needs {begin} and {end} exactly once, it has them {len(parts) - 1} times")
        page = f"{begin}\n{BLOCKS[name]}{end}".join(parts)
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the page, or say by the exit code whether that would change it."""
    parser = argparse.ArgumentParser(prog="python -m dispatch.diagrams", description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the page differs from the tables")
    given = parser.parse_args(arguments)
    before = given.page.read_text(encoding="utf-8")
    after = rewritten(before)
    if given.check:
        if after != before:
            sys.stderr.write(f"{given.page} differs from the tables. Run: python -m dispatch.diagrams {given.page}\n")
        return int(after != before)
    given.page.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
