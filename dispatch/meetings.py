"""What came of a request each time the two lines met, as the scripts note it (scripts/lib/line.lua). Pure.

One line a meeting: `<ms> <what> <details>`; the last few are kept. Never here: how it came to be (scripts/lib/meet.lua).
"""

from dataclasses import dataclass
from enum import StrEnum


class Met(StrEnum):
    """What came of a meeting."""

    GRANTED = "granted"  # it came second, and the best parked pull took it
    GRANTED_FROM_LINE = "granted_from_line"  # it waited, and a worker whose room grew took it
    PAUSED = "paused"  # it waits: the queue is paused
    NO_PULL = "no_pull"  # it waits: no worker had any room
    NO_ROOM = "no_room"  # it waits: no worker had enough room
    PREFILLING = "prefilling"  # it waits: all with room had enough to prefill
    BETTER = "better"  # it waits for one that had enough to prefill, and would serve it much better
    ALONE = "alone"  # it waits: it runs alone, and no worker was empty
    PINNED = "pinned"  # it waited too long: a worker keeps room for it


@dataclass(frozen=True, slots=True)
class Meeting:
    """One meeting. `worker` took it, keeps room for it, or had the most free (`free_tokens`); "" for none.

    A grant to one that came second was a choice among `compared` parked pulls by the `score` of a `strategy`.
    """

    at_ms: int
    met: Met
    worker: str = ""
    strategy: str = ""
    score: float | None = None
    compared: int = 0
    free_tokens: int | None = None


def meetings_from(text: str) -> tuple[Meeting, ...]:
    """The meetings noted, oldest first. A line that cannot be read is passed over: it steers nothing."""
    return tuple(meeting for meeting in map(_meeting, text.splitlines()) if meeting is not None)


def _meeting(line: str) -> Meeting | None:
    try:
        match line.split(" "):
            case [at, "granted", worker, "line"]:
                return Meeting(int(at), Met.GRANTED_FROM_LINE, worker)
            case [at, "granted", worker, strategy, score, compared]:
                return Meeting(int(at), Met.GRANTED, worker, strategy, float(score), int(compared))
            case [at, "waits", "no_room", worker, free]:
                return Meeting(int(at), Met.NO_ROOM, worker, free_tokens=int(float(free)))
            case [at, "waits", ("alone" | "better") as why, worker]:
                return Meeting(int(at), Met(why), worker)
            case [at, "waits", ("paused" | "no_pull" | "prefilling" | "alone") as why]:
                return Meeting(int(at), Met(why))
            case [at, "pinned", worker, free]:
                return Meeting(int(at), Met.PINNED, worker, free_tokens=int(float(free)))
    except ValueError:
        pass
    return None
