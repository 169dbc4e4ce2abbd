"""`python -m dispatch.diagrams [--check] PAGE`: print the tables of states into the marked blocks of a page.

A block stands between `<!-- states:request -->` and `<!-- /states:request -->` (the same with `worker`).
Never here: the tables (states.py).
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dispatch.states import REQUEST_TRANSITIONS, WORKER_TRANSITIONS, as_mermaid

BLOCKS = {"request": as_mermaid(REQUEST_TRANSITIONS), "worker": as_mermaid(WORKER_TRANSITIONS)}


def rewritten(page: str) -> str:
    """The page with its blocks printed anew. Raises ValueError when a block is missing."""
    for name, diagram in BLOCKS.items():
        begin, end = f"<!-- states:{name} -->", f"<!-- /states:{name} -->"
        parts = re.split(f"{re.escape(begin)}.*?{re.escape(end)}", page, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"the page needs {begin} and {end} exactly once, it has them {len(parts) - 1} times")
        page = f"{begin}\n```mermaid\n{diagram}```\n{end}".join(parts)
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
            sys.stderr.write(f"{given.page} differs from dispatch/states.py. Run: python -m dispatch.diagrams {given.page}\n")
        return int(after != before)
    given.page.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
