"""Promises about the two lines and what is left: memory is kept, lines meet, order holds, Redis is empty in the end. Pure.

Never here: Redis, HTTP, clocks.
"""

from collections import defaultdict
from typing import Any

from chaos.evidence import Evidence
from chaos.invariants.base import Found, Violation, story

_MISSED_SAMPLES = 4
_OVERTAKEN_MS = 5_000


def i7_memory_is_kept(e: Evidence) -> Found:
    """No worker is granted more than it offered to hold."""
    for sample in e.history.of("sample"):
        if sample["held"] > sample["slots"] or (sample["used"] > sample["limit"] and sample["held"] > 1):
            yield Violation("I7", "a worker holds more than it offered", sample)


def i7_two_lines_meet(e: Evidence) -> Found:
    """No request waits beside a parked pull that has room for it."""
    in_a_row: dict[str, int] = defaultdict(int)
    for sample in e.history.of("sample"):
        in_a_row[sample["worker"]] = in_a_row[sample["worker"]] + 1 if sample["missed"] else 0
        if in_a_row[sample["worker"]] == _MISSED_SAMPLES:
            yield Violation("I7", "requests wait beside a parked pull with room", sample)


def i11_nothing_is_left(e: Evidence) -> Found:
    """In the end: no timer, lease, waiting entry or held request, and no key without a TTL that is not permanent."""
    structure = e.history.first("structure")
    if structure is None:
        yield Violation("I11", "Redis could not be read in the end", {"phases": list(e.history.of("phase"))})
        return
    for name in ("timers", "lines", "leaks"):
        if structure[name]:
            yield Violation("I11", f"{name} are left", {name: structure[name]})
    for name in ("leases", "held"):
        if any(structure[name].values()):
            yield Violation("I11", f"{name} are left", {name: structure[name]})


def i14_first_come_first_served(e: Evidence) -> Found:
    """Within a model and priority nobody smaller is overtaken for long (requests of one attempt only)."""
    lines: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for final in e.finals.values():
        if final["attempt"] == 1 and final["begun_at"]:
            lines[final["model"], final["priority"]].append(final)
    for finals in lines.values():
        finals.sort(key=lambda f: f["begun_at"])
        # From the last begun to the first: whoever came before us and began after us was overtaken.
        for n, late in enumerate(finals):
            for early in finals[max(0, n - 40) : n]:
                overtaken = early["created_at"] - late["created_at"] > _OVERTAKEN_MS and early["cost"] >= late["cost"]
                if overtaken and early["begun_at"] < late["begun_at"] - 1_000:
                    yield Violation("I14", "a request was overtaken for long", {"late": story(late), "early": story(early)})
                    break
