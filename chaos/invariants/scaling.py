"""Promises about what scales itself: one leader acts, what is ordered runs, and who is retired costs nobody anything. Pure.

All of them pass where nothing scaled. Never here: Redis, clocks, processes.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from chaos.evidence import Evidence
from chaos.history import Event
from chaos.holdings import ON_THE_SERVER, ON_THE_WIRE, ON_WORKERS, Holding, Holdings
from chaos.invariants.base import Found, Violation, faults, story

_GIVEN_BACK = "given back unfinished"
_BREAKING = ("crash", "hang", "oom", "garbage")
_BEFORE_MS = 30_000
"""How long before an attempt was given back a blow may be the reason why its worker was not waited for."""


def s1_one_leader_acts(e: Evidence) -> Found:
    """Epochs never go back: of leaders, orders, decisions, and what agents carried out; and each has one leader."""
    yield from _backwards("leadership", ((x["epoch"], x) for x in e.history.of("leadership")))
    yield from _backwards("orders", ((x["epoch"], x) for x in e.history.of("orders")))
    for final in e.history.of("decisions"):
        entries = ((epoch, {"entry": entry}) for entry, epoch, *_ in final["entries"])
        yield from _backwards("decisions", entries)
    hosts: dict[str, list[Event]] = {}
    for carried in e.history.of("carried"):
        hosts.setdefault(carried["host"], []).append(carried)
    for events in hosts.values():
        yield from _backwards("what an agent carried out", ((x["epoch"], x) for x in events))
    leaders: dict[int, set[str]] = {}
    for event, name in (("leadership", "leader"), ("led", "who")):
        for each in e.history.of(event):
            leaders.setdefault(each["epoch"], set()).add(each[name])
    for epoch, who in leaders.items():
        if len(who) > 1:
            yield Violation("S1", "one epoch has two leaders", {"epoch": epoch, "leaders": sorted(who)})
    for forged in e.history.of("forged_order"):
        if forged["taken"]:
            yield Violation("S1", "orders with old papers were taken", forged)


def s2_what_is_ordered_runs(e: Evidence) -> Found:
    """After healing the pool has the workers that were asked for: each launch one process, nothing else, and all are ready."""
    reached = list(e.history.of("reached"))
    if _scaled(e) and not reached:
        yield Violation("S2", "nobody looked whether the pool comes to rest", {})
    for each in reached:
        # All of it is recomputed: `agreed` is only when the harness stopped looking.
        ordered, procs = each.get("ordered", {}), each.get("procs", {})
        ones = procs.keys() == ordered.keys() and all(len(pids) == 1 for pids in procs.values())
        if len(ordered) != each["wanted"] or not ones or sorted(each.get("ready", ())) != sorted(ordered):
            yield Violation("S2", "what was ordered does not run, or something else does", each)
        elif not each["agreed"]:
            yield Violation("S2", "the pool did not come to rest", each)


def s3_nobody_is_left(e: Evidence) -> Found:
    """Once agents were told to end their workers, no process of theirs, of autoscalers or agents is left; all ended well."""
    left = list(e.history.of("left"))
    if _scaled(e) and not left:
        yield Violation("S3", "nobody looked for orphans", {})
    for each in left:
        if each["processes"]:
            yield Violation("S3", "processes are left", each)
    for ended in e.history.of("ended"):
        if any(code != 0 for code in ended["codes"]):
            yield Violation("S3", "an ending did not end well", ended)


def s4_retiring_costs_nothing(e: Evidence) -> Found:
    """No attempt of a worker that was retired or ended by orders is charged or given back, unless something struck it."""
    holdings = Holdings(e)
    for final in e.finals.values():
        for h in (*holdings.of(final), *holdings.charges(final)):
            launch = holdings.roles.get(h.worker, "")
            told = e.retired.get(launch)
            if told is None or not h.begun_at or told > h.left_at:
                continue
            if (h.charged or h.why == _GIVEN_BACK) and not _is_excused(e, holdings, h, launch):
                evidence = {"launch": launch, "attempt": h.attempt, "why": h.why, "told": told, "left": h.left_at}
                yield Violation("S4", "retiring cost an attempt", {**evidence, "faults": _faults(e, h), **story(final)})


def s5_no_launch_runs_twice(e: Evidence) -> Found:
    """One launch is one process at a time, on whatever host."""
    for sample in e.history.of("pool"):
        twice = {launch: pids for launch, pids in sample["procs"].items() if len(pids) > 1}
        if twice:
            yield Violation("S5", "a launch runs twice", {"t": sample["t"], "launches": twice})


def _scaled(e: Evidence) -> bool:
    return bool((e.history.first("meta") or {}).get("scaled"))


def _backwards(what: str, epochs: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Violation]:
    most = 0
    for epoch, event in epochs:
        if epoch < most:
            yield Violation("S1", f"{what} went back to an older epoch", {"from": most, "to": epoch, **event})
        most = max(most, epoch)


def _is_excused(e: Evidence, holdings: Holdings, h: Holding, launch: str) -> bool:
    """It, its road or the server was struck, or a prompt broke its engine: then it could not finish, or not say so."""
    start = h.left_at - _BEFORE_MS
    on_it = (*ON_WORKERS, *ON_THE_WIRE, "drain-worker", "rolling-restart")
    struck = any(e.overlapping(start, h.left_at, on_it, launch)) or any(e.overlapping(start, h.left_at, ON_THE_SERVER))
    beside = holdings.prompts_on(h.worker, start, h.left_at, _BREAKING)
    return struck or bool(beside) or e.tag_of(h.request) in _BREAKING


def _faults(e: Evidence, h: Holding) -> list[str]:
    return faults(e, h.left_at - _BEFORE_MS, h.left_at)
