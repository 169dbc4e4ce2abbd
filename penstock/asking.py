"""Asking a person before something cannot be undone. Never here: what is about to be done."""

import sys

from penstock.failures import USAGE, Failure


def confirmed(question: str) -> bool:
    """Whether a person said yes. Raises Failure where there is nobody to ask: a script says --yes if it means it."""
    if not sys.stdin.isatty():
        raise Failure(f"{question} Nobody can be asked here", "there is no terminal", "Say --yes if you mean it", USAGE)
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        print(file=sys.stderr)
        return False
    return answer.strip().lower() in ("y", "yes")
