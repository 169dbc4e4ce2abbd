"""How long to wait before the next try. Pure: the dice come as an argument. Never here: who tries."""

from datetime import datetime
from email.utils import parsedate_to_datetime

_GROWTH = 3.0
_MOST_S = 3600.0


def next_wait_s(tried: int, first_s: float, dice: float, retry_after_s: float | None = None) -> float:
    """The wait after the `tried`-th failed try: threefold each time, to an hour at most, within +-25 % by `dice` (0 to 1).

    What the receiver asked for counts where it is longer, and no longer than an hour.
    """
    wait_s = min(first_s * _GROWTH ** (tried - 1), _MOST_S) * (0.75 + dice / 2)
    return max(wait_s, min(retry_after_s or 0.0, _MOST_S))


def retry_after_of(header: str | None, now: datetime) -> float | None:
    """A Retry-After header in seconds from now; None for none, or one that makes no sense."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _MOST_S)
    try:
        at = parsedate_to_datetime(text)
        return min(max(0.0, (at - now).total_seconds()), _MOST_S)
    except (TypeError, ValueError, OverflowError):
        return None
