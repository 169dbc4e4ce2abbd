"""A history seen by request: what was asked, acknowledged, heard and stored, and when which fault lasted. Pure.

Never here: judgement (checker.py).
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from chaos.history import Event, History

MOVED_ASIDE = ("failover", "stop-master")
"""Changes of masters in which the old one lives on and takes writes. A killed one takes none: what it said was copied."""
_FAILOVER_MS = 6_000
_TAG = re.compile(r"\[\[(\w+)\]\]")
ENDED = frozenset({"completed", "failed", "cancelled", "expired"})
Entry = tuple[int, int, str, str, str]  # seq, attempt, kind, data, chain


@dataclass(frozen=True, slots=True)
class Window:
    """A fault from its beginning to its end, milliseconds."""

    name: str
    target: str
    start: float
    end: float


class Evidence:
    """Views of one history."""

    def __init__(self, history: History) -> None:
        self.history = history
        meta = history.first("meta") or {}
        self.topology: str = meta.get("topology", "single")
        self.lease_ms: float = meta.get("lease_s", 2.0) * 1000
        self.gateways: dict[str, str] = meta.get("gateways", {})  # url -> role
        self.engine_failures: int = meta.get("engine_failures", 5)
        self.hosts: dict[str, str] = {e["role"]: e["host"] for e in history.of("process") if e.get("host")}
        """Launch -> the agent's role: they share a host, and its road."""

    @cached_property
    def finals(self) -> dict[str, Event]:
        """What Redis held of each request in the end."""
        return {f["id"]: f for f in self.history.of("final")}

    @cached_property
    def submits(self) -> dict[str, Event]:
        """Every submit, by its number."""
        return {s["n"]: s for s in self.history.of("submit")}

    @cached_property
    def acknowledged(self) -> dict[str, Event]:
        """Request id -> the first answer that named it."""
        found: dict[str, Event] = {}
        for answer in self.history.of("answer"):
            if answer["id"]:
                found.setdefault(answer["id"], answer)
        return found

    @cached_property
    def references(self) -> dict[str, Event]:
        """Ask -> its one right answer."""
        return {r["ask"]: r for r in self.history.of("reference")}

    @cached_property
    def healed_at(self) -> float:
        """When the last fault was undone."""
        return max((e["t"] for e in self.history.of("phase") if e["what"] == "healed"), default=0.0)

    @cached_property
    def heard(self) -> dict[str, list[Event]]:
        """Request id -> every connection that read it."""
        found: dict[str, list[Event]] = defaultdict(list)
        for each in self.history.of("heard"):
            found[each["id"]].append(each)
        return found

    @cached_property
    def windows(self) -> list[Window]:
        """Every fault that struck, with its span."""
        ends: dict[int, float] = {e["n"]: e["t"] for e in self.history.of("fault") if e["phase"] == "undone"}
        last: float = self.history.events[-1]["t"] if self.history.events else 0.0
        return [
            Window(e["name"], e["target"], e["t"], ends.get(e["n"], last)) for e in self.history.of("fault") if e["phase"] == "do"
        ]

    def overlapping(self, start: float, end: float, names: Collection[str] = (), target: str = "") -> Iterator[Window]:
        """The faults that lasted at some moment of a span; of a pool's worker also those of its host."""
        targets = (target, "all", self.hosts.get(target, target))
        for w in self.windows:
            if w.start <= end and w.end >= start and (not names or w.name in names) and (not target or w.target in targets):
                yield w

    @cached_property
    def retired(self) -> dict[str, float]:
        """Launch -> when it was told to drain, or was ordered no more; the last time, if it was kept in between."""
        found: dict[str, float] = {}
        before: set[str] = set()
        for event in self.history.of("orders"):
            staying = event["launches"].keys() - set(event["retiring"])
            found = {launch: t for launch, t in found.items() if launch not in staying}
            for launch in (before | event["launches"].keys()) - staying:
                found.setdefault(launch, event["t"])
            before |= event["launches"].keys()
        return found

    @cached_property
    def dropped(self) -> dict[str, float]:
        """Launch -> when it was ordered no more: from then on its agent ends it."""
        found: dict[str, float] = {}
        before: set[str] = set()
        for event in self.history.of("orders"):
            for launch in before - event["launches"].keys():
                found.setdefault(launch, event["t"])
            before |= event["launches"].keys()
        # Ordered and dropped between two looks: it was dropped before it was seen.
        return {**dict.fromkeys(self.hosts.keys() - before, 0.0), **found}

    @cached_property
    def forgotten(self) -> set[str]:
        """Acknowledged around a change of masters, their end seen by a client, and their record lost with the old master.

        What was acknowledged longer before the change had reached the others: its loss is a loss.
        """
        if self.topology == "single":
            return set()
        witnessed = {e["id"] for e in self.history.of("seen", "result", "cancel") if e["state"] in ENDED}
        witnessed |= {c["id"] for c in self.history.of("heard") if c["how"] == "end"}
        return {r for r, answer in self._gone.items() if r in witnessed and any(self._moved(answer["t"]))}

    @cached_property
    def doubly_struck(self) -> set[str]:
        """Lost by two faults at once: an old master took them while another was made, and the gateway that remembered
        them was killed before it could say so. Whoever was seen alive after both was lost by something else."""
        found = set()
        for request, answer in self._gone.items():
            if self.topology == "single" or request in self.forgotten:
                continue
            t, gateway = answer["t"], self.gateways.get(answer["gateway"], "")
            moved = [w.start for w in self._moved(t)]
            killed = [w.start for w in self.overlapping(t, t + 2 * _FAILOVER_MS, ("kill-gateway",), gateway) if w.start > t]
            if moved and killed and self._last_alive(request) <= max(min(moved), min(killed)) + _FAILOVER_MS:
                found.add(request)
        return found

    @cached_property
    def _gone(self) -> dict[str, Event]:
        """Acknowledged and not in Redis in the end."""
        return {request: answer for request, answer in self.acknowledged.items() if request not in self.finals}

    def _moved(self, t: float) -> Iterator[Window]:
        """The changes of masters around a moment: only what was written then can be lost by them."""
        return self.overlapping(t - _FAILOVER_MS, t + _FAILOVER_MS, MOVED_ASIDE)

    def _last_alive(self, request: str) -> float:
        seen = [e["t"] for e in self.history.of("seen") if e["id"] == request and e["status"] == 200]
        read = [c["events"][-1][0] for c in self.heard.get(request, ()) if c["events"]]
        return max((*seen, *read), default=0.0)

    def submit_of(self, request: str) -> Event | None:
        """The submit that brought a request in, as far as its client knows."""
        answer = self.acknowledged.get(request)
        return self.submits.get(answer["n"]) if answer else None

    def reference_of(self, request: str) -> Event | None:
        """The right answer of a request."""
        submit = self.submit_of(request)
        return self.references.get(submit["ask"]) if submit else None

    def is_poison(self, request: str) -> bool:
        """Whether it was meant to break its engine."""
        submit = self.submit_of(request)
        return bool(submit and submit["poison"])

    def tag_of(self, request: str) -> str:
        """What it makes its engine do; "" for most, and for a submit whose answer nobody got."""
        submit = self.submit_of(request)
        match = _TAG.search(submit["ask"]) if submit else None
        return match[1] if match else ""


def text_of(log: list[Entry]) -> str:
    """The text of a log's chunks."""
    return "".join(json.loads(data).get("text", "") for _, _, kind, data, _ in log if kind == "chunk")


def tokens_of(log: list[Entry]) -> int:
    """How many token ids a log's chunks name."""
    return sum(len(json.loads(data).get("tokens", ())) for _, _, kind, data, _ in log if kind == "chunk")


def end_of(log: list[Entry]) -> dict[str, Any] | None:
    """The data of a log's end, if it has one."""
    ends = [json.loads(data) for _, _, kind, data, _ in log if kind == "end"]
    return ends[-1] if ends else None
