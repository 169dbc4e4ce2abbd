"""What queries and headers say: numbers, moments, waits, places to go on from. Pure.

Never here: bodies and their fields (bodies.py, fields.py).
"""

import re
from datetime import datetime

from dispatch.errors import PenstockError

MAX_WAIT_S = 300
PAGE, LARGEST_PAGE = 50, 200
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})(?:$|[,;\s])")


def preferred_wait_s(prefer: str) -> int:
    """How long a `Prefer` header asks to wait; 0: not at all."""
    match = _WAIT.search(prefer)
    return min(int(match.group(1)), MAX_WAIT_S) if match else 0


def number(text: str | None, name: str, default: int, low: int, high: int) -> int:
    """A number within its range."""
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise PenstockError(
            "invalid_request", f"{name}: {text[:40]!r} is not {low} to {high}.", hint=f"Send {low} to {high}.", param=name
        )
    return int(text)


def moment_ms(text: str | None) -> int | None:
    """Unix seconds, or RFC 3339."""
    if text is None:
        return None
    try:
        if re.fullmatch(r"[0-9]{1,11}(\.[0-9]{1,6})?", text):
            return int(float(text) * 1000)
        return int(datetime.fromisoformat(text.replace(" ", "+")).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise PenstockError(
            "invalid_request",
            f"since: {text[:40]!r} is no moment.",
            hint="Send unix seconds or 2026-01-31T12:00:00Z.",
            param="since",
        ) from error


def row_of(text: str | None) -> tuple[int, str] | None:
    """The (moment, id) of the row to go on from."""
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,15})-(s[0-9]{1,3}\.[0-9a-f]{32})", text)
    if match is None:
        raise PenstockError(
            "invalid_request", "cursor: not one of ours.", hint="Send the `next_cursor` of the page before.", param="cursor"
        )
    return int(match.group(1)), match.group(2)
