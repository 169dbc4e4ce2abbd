"""The history of a run: JSON lines, written as things happen, read back as lists by kind.

Every line has `t` (milliseconds since the epoch) and `ev`, its kind. Never here: what a history must look like (checker.py).
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

Event = dict[str, Any]


def now_ms() -> float:
    """The clock of a history; on one machine it is Redis's clock, too."""
    return time.time() * 1000


class Recorder:
    """Appends events to a file, each whole line at once: a run that dies leaves a readable history."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def __call__(self, ev: str, **fields: Any) -> None:
        """Write one event down."""
        self._file.write(msgspec.json.encode({"t": round(now_ms(), 1), "ev": ev, **fields}) + b"\n")

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


class History:
    """Events of one run, in the order they were written."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events = list(events)
        self._by_kind: dict[str, list[Event]] = {}
        for event in self.events:
            self._by_kind.setdefault(event["ev"], []).append(event)

    def of(self, *kinds: str) -> Iterator[Event]:
        """All events of these kinds."""
        for kind in kinds:
            yield from self._by_kind.get(kind, ())

    def first(self, kind: str) -> Event | None:
        """The first event of a kind, or None."""
        return next(self.of(kind), None)


def read(path: Path) -> History:
    """A history from its file."""
    with path.open("rb") as file:
        return History(msgspec.json.decode(line) for line in file)
