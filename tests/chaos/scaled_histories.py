"""Histories of a run that scales: a good one, made by hand, and how each promise about it is broken."""

from typing import Any

Event = dict[str, Any]
T0 = 1_000_000.0
LAUNCH, OTHER = "l-00ff", "l-11ff"


def orders(t: float, epoch: int, *launches: str, retiring: tuple[str, ...] = ()) -> Event:
    """What was ordered from then on."""
    return {"t": t, "ev": "orders", "epoch": epoch, "launches": dict.fromkeys(launches, "host-0"), "retiring": list(retiring)}


def attempt(request: Event, why: str, *, left: float, begun: float = T0 + 10) -> Event:
    """A request whose first attempt was in the hands of the pool's worker."""
    return {**request, "story": [[1, "w-p", T0, begun, left, why]], "charged": 0 if "given back" in why else 1}


GOOD: list[Event] = [
    {"t": T0 - 9_000, "ev": "leadership", "leader": "as-a", "epoch": 1},
    orders(T0 - 8_900, 1, LAUNCH),
    {"t": T0 - 8_800, "ev": "carried", "host": "host-0", "agent": "host-0-9", "epoch": 1},
    {"t": T0 - 8_700, "ev": "process", "role": LAUNCH, "host": "agent-0", "what": "start", "pid": 70},
    {"t": T0 - 8_700, "ev": "pool", "procs": {LAUNCH: [70]}},
    {"t": T0 - 8_000, "ev": "workers", "role": LAUNCH, "ids": ["w-p"]},
    {"t": T0 + 6_000, "ev": "leadership", "leader": "as-b", "epoch": 2},
    {"t": T0 + 6_100, "ev": "forged_order", "epoch": 1, "leader": "as-a", "taken": False},
    orders(T0 + 6_200, 2, LAUNCH, OTHER),
    {"t": T0 + 6_300, "ev": "carried", "host": "host-0", "agent": "host-0-9", "epoch": 2},
    orders(T0 + 9_000, 2, LAUNCH, OTHER, retiring=(LAUNCH,)),
    orders(T0 + 10_000, 2, OTHER),
    {"t": T0 + 11_000, "ev": "process", "role": LAUNCH, "host": "agent-0", "what": "exit", "pid": 70, "code": None, "told": 0},
    {"t": T0 + 11_000, "ev": "pool", "procs": {OTHER: [71]}},
    {
        "t": T0 + 21_000, "ev": "reached", "wanted": 1, "took_s": 1.0, "agreed": True, "ordered": {OTHER: "host-0"},
        "reports": {OTHER: "running"}, "procs": {OTHER: [71]}, "ready": [OTHER],
    },
    {"t": T0 + 22_000, "ev": "decisions", "entries": [["1-0", 1, "up", 1], ["2-0", 2, "up", 2], ["3-0", 2, "down", 1]]},
    {"t": T0 + 23_000, "ev": "ended", "kind": "agent", "codes": [0, 0]},
    {"t": T0 + 24_000, "ev": "left", "processes": []},
    {"t": T0 + 24_000, "ev": "led", "role": "autoscaler-0", "epoch": 1, "who": "as-a"},
    {"t": T0 + 24_000, "ev": "led", "role": "autoscaler-1", "epoch": 2, "who": "as-b"},
]  # fmt: skip


def bad(good: list[Event], request: Event) -> dict[str, list[list[Event]]]:
    """The promise's name -> histories that it must catch. `good` is all of a good run, `request` one of its requests."""

    def changed(ev: str, **changes: Any) -> list[Event]:
        return [{**e, **changes} if e["ev"] == ev else e for e in good]

    def without(ev: str) -> list[Event]:
        return [e for e in good if e["ev"] != ev]

    rest = [e for e in good if e["ev"] != "final"]
    orphan = {"pid": 9, "launch": LAUNCH, "command": "penstock worker"}
    return {
        "s1_one_leader_acts": [
            [*good, {"t": T0 + 7_000, "ev": "leadership", "leader": "as-a", "epoch": 1}],
            [*good, {"t": T0 + 7_000, "ev": "leadership", "leader": "as-c", "epoch": 2}],
            [*good, orders(T0 + 12_000, 1, OTHER)],
            changed("decisions", entries=[["1-0", 2, "up", 1], ["2-0", 1, "up", 2]]),
            [*good, {"t": T0 + 12_000, "ev": "carried", "host": "host-0", "agent": "host-0-10", "epoch": 1}],
            [*good, {"t": T0 + 24_000, "ev": "led", "role": "autoscaler-2", "epoch": 2, "who": "as-c"}],
            changed("forged_order", taken=True),
        ],
        "s2_what_is_ordered_runs": [
            without("reached"),
            changed("reached", procs={}),
            changed("reached", procs={OTHER: [71, 72]}),
            changed("reached", procs={OTHER: [71], LAUNCH: [70]}),
            changed("reached", ready=[]),
            changed("reached", wanted=2),
            changed("reached", agreed=False),
        ],
        "s3_nobody_is_left": [without("left"), changed("left", processes=[orphan]), changed("ended", codes=[0, None])],
        "s4_retiring_costs_nothing": [
            [*rest, attempt(request, "given back unfinished", left=T0 + 10_500)],
            [*rest, attempt(request, "given back unfinished", left=T0 + 9_500)],
            [*rest, attempt(request, "l-00ff was killed by signal 9", left=T0 + 10_500)],
            # Another host was struck, or its own agent: no cause.
            [*rest, *_struck("stop-host", "agent-1"), attempt(request, "given back unfinished", left=T0 + 10_500)],
            [*rest, *_struck("kill-agent", "agent-0"), attempt(request, "given back unfinished", left=T0 + 10_500)],
            [*rest, *_struck("kill-leader", "autoscaler-0"), attempt(request, "given back unfinished", left=T0 + 10_500)],
        ],
        "s5_no_launch_runs_twice": [[*good, {"t": T0, "ev": "pool", "procs": {LAUNCH: [70, 72]}}]],
    }


def excused(good: list[Event], request: Event) -> list[list[Event]]:
    """What a retired worker gave back has a cause: it, its host's road or the server was struck; or it was not retired yet."""
    rest = [e for e in good if e["ev"] != "final"]
    unfinished = attempt(request, "given back unfinished", left=T0 + 10_500)
    blows = (("drain-worker", LAUNCH), ("partition", "agent-0"), ("stop-host", "agent-0"), ("kill-server", "server"))
    return [
        *([*rest, *_struck(name, target), unfinished] for name, target in blows),
        [*rest, attempt(request, "given back unfinished", left=T0 + 8_000)],
        [*rest, attempt(request, "given back unfinished", left=T0 + 10_500, begun=0)],
    ]


def _struck(name: str, target: str) -> list[Event]:
    fault = {"ev": "fault", "n": f"{name} {target}", "name": name, "target": target}
    return [{**fault, "t": T0 + 9_200, "phase": "do", "for_s": 0}, {**fault, "t": T0 + 9_300, "phase": "undone"}]
