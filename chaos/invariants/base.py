"""What every promise's function is made of: a violation with its evidence, and how evidence is told. Pure.

Never here: promises.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from chaos.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept."""

    invariant: str
    what: str
    evidence: dict[str, Any] = field(default_factory=dict)


Found = Iterator[Violation]


def story(final: dict[str, Any]) -> dict[str, Any]:
    """A final without its log."""
    return {k: v for k, v in final.items() if k not in ("log", "ev", "t")}


def where(connection: dict[str, Any]) -> dict[str, Any]:
    """A connection: how much it brought, and the last of it."""
    events = connection["events"]
    return {**{k: v for k, v in connection.items() if k not in ("events", "ev")}, "events": len(events), "last": events[-1:]}


def plain(event: dict[str, Any]) -> dict[str, Any]:
    """An event without what it carried."""
    return {k: v for k, v in event.items() if k != "events"}


def faults(e: Evidence, start: float, end: float) -> list[str]:
    """What struck in a span, in words."""
    return [f"{w.name} {w.target}" for w in e.overlapping(start, end)]


def difference(came: str, right: str) -> dict[str, Any]:
    """Where two texts part."""
    at = next((n for n, (a, b) in enumerate(zip(came, right, strict=False)) if a != b), min(len(came), len(right)))
    span = slice(max(0, at - 20), at + 20)
    return {"lengths": (len(came), len(right)), "differ_at": at, "came": came[span], "right": right[span]}
