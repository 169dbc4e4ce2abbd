"""Promises about processes: nobody ends by itself, and an engine that talks nonsense is taken out of work. Pure.

Never here: Redis, HTTP, clocks.
"""

import signal

from chaos.evidence import Evidence
from chaos.history import Event
from chaos.holdings import ON_THE_SERVER, ON_THE_WIRE, Holdings
from chaos.invariants.base import Found, Violation

_START_MS = 30_000
"""How long a process may look for Redis before it says that there is none."""
_STOPS = ("stop-worker", "stop-fleet", "stop-gateway", "stop-leader", "stop-agent", "stop-host")
_LOOK_MS = 1_000
"""How late the harness sees new orders."""
_LAST_WORD_MS = 5_000
"""From an engine's death to the end of a worker that has no use for another one."""


def j2_processes_stay(e: Evidence) -> Found:
    """No process of ours ends unless it is told to, or has one of five reasons: see `_has_a_reason`."""
    started: dict[int, float] = {}
    for event in e.history.of("process"):
        if event["what"] == "start":
            started[event["pid"]] = event["t"]
        elif not event["told"] and not _has_a_reason(e, event, started[event["pid"]]):
            yield Violation("J2", "a process ended by itself", event)


def _has_a_reason(e: Evidence, end: Event, start: float) -> bool:
    role, t = end["role"], end["t"]
    # A pool's worker that is ordered no more is ended by its agent.
    if e.dropped.get(role, float("inf")) <= t + _LOOK_MS:
        return True
    ready = [s["t"] for s in e.history.of("sample") if s.get("pid") == end["pid"] and s["state"] == "ready"]
    # It met no Redis at its start, or was stopped while it looked for it, and said so.
    away = (*e.overlapping(start, t, ON_THE_SERVER), *e.overlapping(start, t, (*ON_THE_WIRE, *_STOPS), role))
    if not ready and t - start <= _START_MS and away:
        return True
    # Its engine was killed while it started: what cannot start once is not tried again.
    killed = [w.start for w in e.overlapping(start, t, ("kill-engine",), role)]
    if any(t - at <= _LAST_WORD_MS and (not ready or at < ready[0]) for at in killed):
        return True
    # Engine after engine died on it: it leaves rather than eat requests.
    holdings = Holdings(e)
    workers = [worker for worker, of in holdings.roles.items() if of == role]
    # An engine inside the worker's own process takes it along; the prompt was in it when it fell.
    # How a pool's worker ended its agent alone knows.
    if end["code"] in (-signal.SIGSEGV, None) and any(holdings.prompts_on(worker, t, t, ("crash",)) for worker in workers):
        return True
    broken = {request for worker in workers for request in holdings.prompts_on(worker, start, t, ("crash", "hang"))}
    return len(killed) + len(broken) >= e.engine_failures


def j4_nonsense_is_quarantined(e: Evidence) -> Found:
    """An engine whose canary changed is out of work once it was idle, with the reason; then nobody is granted to it."""
    holdings = Holdings(e)
    quarantined = {q["worker"]: q for q in e.history.of("quarantined")}
    for worker, probed in {p["worker"]: p for p in e.history.of("probed")}.items():
        said = holdings.prompts_on(worker, 0, probed["t"], ("garbage",))
        # Of several attempts, the one here may have ended before its fault struck.
        spoke = [r for r in said if e.finals[r]["state"] == "completed" and e.finals[r]["attempt"] == 1]
        if spoke and probed["state"] == "ready":
            yield Violation("J4", "an engine that talks nonsense passed a probe", {"requests": spoke, **probed})
    for worker, q in quarantined.items():
        if "canary" not in q["error"]:
            yield Violation("J4", "a quarantine without its reason", q)
        for final in e.finals.values():
            if final["worker"] == worker and final["granted_at"] > q["t"] + 1_000:
                yield Violation("J4", "a request was granted to a worker in quarantine", {"id": final["id"], **q})
