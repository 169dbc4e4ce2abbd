"""Who gets what: the line of waiting requests meets the parked pulls, by the scores of `dispatch/scores.py`.

The same choices as `scores.choose`, with the parked pulls kept in the order of what does not hang on the request.
Never here: time, and how a worker works.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

from dispatch import scores
from dispatch.scores import Load, Need, Share, Strategy

_NO_SHARE = Share(0, 1.0)
_NO_NEED = Need(0, 0)


class Meeting(Protocol):
    """What the simulation asks for a worker: by place in the fleet; None if nobody parked has room."""

    def put(self, place: int, load: Load) -> None:
        """The load of a parked worker changed, or it parks."""
        ...

    def leave(self, place: int) -> None:
        """It is not parked any more."""
        ...

    def choose(self, need: Need) -> int | None:
        """Who is granted the request."""
        ...


class Ordered:
    """Strategies whose score hangs on the worker alone, and `pull`, which looks at the first few of such an order."""

    def __init__(self, first: Callable[[Load], float], exact: Callable[[Load, int], float] | None, candidates: int) -> None:
        self._first = first
        self._exact = exact
        self._candidates = candidates
        self._line: list[tuple[float, str, int]] = []
        self._at: dict[int, tuple[float, str, int]] = {}
        self._loads: dict[int, Load] = {}

    def put(self, place: int, load: Load) -> None:
        entry = (self._first(load), load.worker, place)
        self._loads[place] = load
        before = self._at.get(place)
        if before == entry:
            return
        if before is not None:
            del self._line[bisect_left(self._line, before)]
        insort(self._line, entry)
        self._at[place] = entry

    def leave(self, place: int) -> None:
        before = self._at.pop(place, None)
        if before is not None:
            del self._line[bisect_left(self._line, before)]
            del self._loads[place]

    def choose(self, need: Need) -> int | None:
        fitting = self._fitting(need.cost_tokens)
        if self._exact is None:
            return next(fitting, None)
        best, lowest, name = None, 0.0, ""
        for _, place in zip(range(self._candidates), fitting, strict=False):
            load = self._loads[place]
            score = self._exact(load, need.prompt_tokens)
            if best is None or score < lowest or (score == lowest and load.worker < name):
                best, lowest, name = place, score, load.worker
        return best

    def first(self, count: int) -> list[int]:
        """The first few in line with any room, in its order."""
        return list(islice(self._fitting(1), count))

    def _fitting(self, cost_tokens: int) -> Iterator[int]:
        for _, _, place in self._line:
            load = self._loads[place]
            if load.held < load.slots and load.limit_tokens - load.used_tokens >= cost_tokens:
                yield place


class Pulling:
    """`pull`: the best of the open, unless a closed one is so much better that the request waits for it."""

    def __init__(self) -> None:
        self._open = Ordered(scores.standing, scores.pull, scores.CANDIDATES)
        self._closed = Ordered(scores.standing, None, 1)
        self._loads: dict[int, Load] = {}

    def put(self, place: int, load: Load) -> None:
        self._loads[place] = load
        line, other = (self._closed, self._open) if scores.is_closed(load) else (self._open, self._closed)
        other.leave(place)
        line.put(place, load)

    def leave(self, place: int) -> None:
        self._open.leave(place)
        self._closed.leave(place)

    def choose(self, need: Need) -> int | None:
        place = self._open.choose(need)
        return place if place is None or self.suits(place, need) else None

    def suits(self, place: int, need: Need) -> bool:
        """Whether no closed one is worth waiting for."""
        closed = self._closed.first(scores.CANDIDATES)
        return not closed or scores.suits(self._loads[place], need, [self._loads[place] for place in closed])

    def first_open(self) -> list[int]:
        """Those that are open, in the order in which they stand."""
        return self._open.first(scores.CANDIDATES)


class _All:
    """Strategies that look at all who have room, in the order of their names."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._loads: dict[str, Load] = {}
        self._places: dict[str, int] = {}
        self._by_place: dict[int, str] = {}

    def put(self, place: int, load: Load) -> None:
        if place not in self._by_place:
            insort(self._names, load.worker)
            self._by_place[place] = load.worker
            self._places[load.worker] = place
        self._loads[load.worker] = load

    def leave(self, place: int) -> None:
        name = self._by_place.pop(place, None)
        if name is not None:
            del self._names[bisect_left(self._names, name)]

    def _fitting(self, cost_tokens: int) -> list[Load]:
        loads = self._loads
        return [
            load
            for name in self._names
            if (load := loads[name]).held < load.slots and load.limit_tokens - load.used_tokens >= cost_tokens
        ]


class TwoPicks(_All):
    """`power_of_two`."""

    def choose(self, need: Need) -> int | None:
        fitting = self._fitting(need.cost_tokens)
        if not fitting:
            return None
        compared = [fitting[i] for i in scores.two_picks(len(fitting), need.salt)]
        return self._places[min(compared, key=lambda load: (scores.connections(load), load.worker)).worker]


class Sessions(_All):
    """`session`: hashes only those who are within their bound."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, str] = {}

    def choose(self, need: Need) -> int | None:
        fitting = self._fitting(need.cost_tokens)
        if not fitting:
            return None
        share = scores.share_of(fitting)
        within = [load for load in fitting if load.held + 1 <= scores.session_bound(load, share)]
        last = self._last.get(need.session)
        if not within:
            name = min(fitting, key=lambda load: (scores.connections(load), load.worker)).worker
        elif any(load.worker == last for load in within):
            name = str(last)
        else:
            _, name = min((scores.affinity(need.session, load.worker), load.worker) for load in within)
        self._last[need.session] = name
        return self._places[name]


class FirstToWake:
    """The baseline `greedy`: who happens to look next takes all it can hold, until it is full or nothing waits."""

    def __init__(self, draw: Callable[[int], int]) -> None:
        self._draw = draw
        self._loads: dict[int, Load] = {}
        self._taker: int | None = None

    def put(self, place: int, load: Load) -> None:
        self._loads[place] = load

    def leave(self, place: int) -> None:
        self._loads.pop(place, None)

    def woken(self) -> None:
        """A new look: whoever is first may be another."""
        self._taker = None

    def choose(self, need: Need) -> int | None:
        taker = self._loads.get(self._taker) if self._taker is not None else None
        if taker is None or not scores.has_room(taker, need.cost_tokens):
            able = [place for place, load in self._loads.items() if scores.has_room(load, need.cost_tokens)]
            self._taker = able[self._draw(len(able))] if able else None
        return self._taker


def meeting_of(strategy: Strategy) -> Meeting:
    """The meeting that ranks by this strategy."""
    if strategy is Strategy.PULL:
        return Pulling()
    if strategy is Strategy.POWER_OF_TWO:
        return TwoPicks()
    if strategy is Strategy.SESSION:
        return Sessions()
    return Ordered(lambda load: scores.score(strategy, load, _NO_NEED, _NO_SHARE), None, 1)
