"""Who held what from when to when, and what may have taken it from them: attempts, incarnations, prompts. Pure.

Never here: judgement (invariants/).
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

from chaos.evidence import Evidence, Window
from chaos.history import Event

ON_WORKERS = ("kill-worker", "kill-engine", "stop-worker", "stop-fleet", "kill-host", "stop-host")
ON_GATEWAYS = ("kill-gateway", "drain-gateway", "rolling-restart", "stop-gateway")
ON_THE_WIRE = ("partition", "one-way", "refuse", "drop-replies", "delay", "cut")
CHARGING_ON_THE_SERVER = ("outage", "kill-master", "stop-master", "failover", "kill-replica")
"""A server that stops or restarts charges nobody: the sweeper waits one more lease. These last longer, or lose a renewal."""
ON_THE_SERVER = (
    "stop-server", "kill-server", "outage", "disk-full", "kill-master", "stop-master", "failover", "kill-replica", "client-kill",
)  # fmt: skip
UNCHARGED = ("given back unfinished", "not begun in time")
"""What a story says of an attempt that went back for nothing."""
LAPSED = "was not heard of for a whole lease"
_SETTLE_MS = 2_500
"""How long after a blow what it did may still arrive: the engine's burial, the supervisor's look, the sweep."""
_LATEST_MS = 13_000
"""How long after its worker's death an attempt is found out at the latest."""


@dataclass(frozen=True, slots=True)
class Holding:
    """One attempt in the hands of one incarnation of a worker; `begun_at` 0: it never began."""

    request: str
    attempt: int
    worker: str
    begun_at: float
    left_at: float
    why: str

    @property
    def charged(self) -> bool:
        """Whether it counted."""
        return self.begun_at > 0 and self.why not in UNCHARGED


class Holdings:
    """All attempts of a history."""

    def __init__(self, evidence: Evidence) -> None:
        self._e = evidence

    @cached_property
    def roles(self) -> dict[str, str]:
        """Incarnation -> the role that it was one of."""
        return {worker: each["role"] for each in self._e.history.of("workers") for worker in each["ids"]}

    def of(self, final: Event) -> list[Holding]:
        """The attempts of a request that did not end it."""
        return [Holding(final["id"], a, w, begun, left, why) for a, w, _, begun, left, why in final["story"]]

    def charges(self, final: Event) -> list[Holding]:
        """Those that counted; the last one too, where its charge was the end."""
        found = [holding for holding in self.of(final) if holding.charged]
        if final["state"] == "failed" and final["charged"] > len(found):
            found.append(self._last(final, "failed"))
        return found

    def is_told_whole(self, final: Event) -> bool:
        """Whether its story still has every attempt but the last: a long one loses its beginning."""
        return {h.attempt for h in self.of(final)} >= set(range(1, final["attempt"]))

    def excuses(self, holding: Holding) -> Iterator[Window]:
        """What struck the very worker that held it, its way to the server, or the server, while it held it."""
        start, end = holding.begun_at - _SETTLE_MS, holding.left_at
        if LAPSED in holding.why and not self._killed(holding):
            # A lease that nobody renews lasts for one lease from the last renewal, and for one more after an amnesty. A dead
            # incarnation never renews again: one amnesty may follow another before its charge.
            start = max(start, holding.left_at - 2 * self._e.lease_ms - _SETTLE_MS)
        yield from self._e.overlapping(start, end, CHARGING_ON_THE_SERVER)
        # A worker that was never seen is any worker: its role may have lived for less than a sample and no log line.
        yield from self._e.overlapping(start, end, (*ON_WORKERS, *ON_THE_WIRE), self.roles.get(holding.worker, ""))

    def _killed(self, holding: Holding) -> bool:
        kills = self._kills.get(holding.worker, ())
        return any(holding.begun_at <= t <= holding.left_at <= t + _LATEST_MS for t in kills)

    @cached_property
    def _kills(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        for victims in self._e.history.of("victims"):
            if victims["cause"] == "SIGKILL":
                for worker in victims["workers"]:
                    found[worker].append(victims["t"])
        return found

    def prompts_on(self, worker: str, start: float, end: float, tags: Collection[str] = ()) -> list[str]:
        """The prompts that break engines which this incarnation had in a span."""
        return [
            request
            for request, tag, first, last in self._prompted.get(worker, ())
            if first <= end and last + _SETTLE_MS >= start and (not tags or tag in tags)
        ]

    @cached_property
    def _prompted(self) -> dict[str, list[tuple[str, str, float, float]]]:
        found: dict[str, list[tuple[str, str, float, float]]] = defaultdict(list)
        for final in self._e.finals.values():
            tag = self._e.tag_of(final["id"])
            if tag:
                for h in (*self.of(final), self._last(final, final["state"])):
                    if h.begun_at:
                        found[h.worker].append((h.request, tag, h.begun_at, h.left_at))
        return found

    def _last(self, final: Event, why: str) -> Holding:
        begun = final["attempt_begun_at"] if final["attempt_begun_at"] >= final["granted_at"] else 0.0  # else: of the one before
        return Holding(final["id"], final["attempt"], final["worker"], begun, final["ended_at"], why)
