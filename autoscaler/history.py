"""What decisions remember from tick to tick: the wishes of the windows, the last turn, failed starts. Frozen values. Pure.

Never here: what follows from it (policy.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dispatch.scaling import Action, DecisionRecord

Marks = tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class History:
    """`History()` is the beginning, `recalled` that of a new leader. `base`: the number decided last.
    Opaque to all but policy.py.

    `peaks` falls and `dips` rises from the oldest to the newest: the first of each is the window's extreme.
    `turned_at_s`: when the direction changed last. `failures` in a row, and when the next failed worker may be replaced.
    """

    first_at_s: float | None = None
    busy_at_s: float = 0.0
    base: int = 0
    peaks: Marks = ()
    dips: Marks = ()
    direction: int = 0
    turned_at_s: float | None = None
    up_at_s: float | None = None
    initial_over: bool = False
    failures: int = 0
    replace_at_s: float = 0.0
    told: tuple[str, ...] = ()


def recalled(log: Iterable[DecisionRecord]) -> History:
    """The beginning for who takes over from another leader: the turns of a pool's decisions, oldest first, as that one knew them.

    A pool whose leaders change would else turn with each of them.
    """
    history = History()
    for record in log:
        if record.action not in (Action.UP, Action.DOWN) or record.dry_run:
            continue
        at_s, direction = record.at_ms / 1000, 1 if record.action is Action.UP else -1
        turned = bool(history.direction) and direction != history.direction and record.from_workers > 0
        history = replace(
            history,
            direction=direction,
            turned_at_s=at_s if turned else history.turned_at_s,
            up_at_s=at_s if direction > 0 else history.up_at_s,
        )
    return history


def wished(history: History, at_s: float, wish: int, up_window_s: float, down_window_s: float) -> History:
    """With one more wish, and without those that left the windows."""
    peaks = tuple(mark for mark in history.peaks if mark[0] > at_s - down_window_s and mark[1] > wish)
    dips = tuple(mark for mark in history.dips if mark[0] > at_s - up_window_s and mark[1] < wish)
    return replace(history, peaks=(*peaks, (at_s, wish)), dips=(*dips, (at_s, wish)))


def peak(history: History) -> int:
    """The largest wish of the down window."""
    return history.peaks[0][1]


def dip(history: History) -> int:
    """The least wish of the up window."""
    return history.dips[0][1]
