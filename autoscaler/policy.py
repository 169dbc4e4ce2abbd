"""How many workers a pool should have: `decide`. No clock, no Redis, no process: the same values in, the same decision out.

In this order: the policies' wishes, the largest counts; at least min, the floors of this hour, `initial`; up at once, down only
to the peak of a window; steps; not more than one turn a minute; at most max. Capacity is who is ready, starting or loading.
Who drains is none: whoever carries a decision out keeps a draining worker first where more are needed. Who failed is none.

A turn that bounds force (max lower than what runs, min or a floor higher) or that wakes from zero waits for nothing; to wake is
no turn.
Never here: what a policy asks for (policies/), who goes (victims.py), how it is carried out (reconcile.py).
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from autoscaler.history import History, dip, peak, wished
from autoscaler.policies import latency, queue_delay, request_count, utilisation
from autoscaler.policies.base import Floor, PoolPolicy, View, Wish, view_of
from autoscaler.seen import Phase, Seen
from dispatch.scaling import Action, ScalingPolicy

__all__ = ["Decision", "Floor", "History", "PoolPolicy", "decide"]

WISHES: Mapping[ScalingPolicy, Callable[[View, PoolPolicy], Wish]] = {
    ScalingPolicy.QUEUE_DELAY: queue_delay.wish,
    ScalingPolicy.REQUEST_COUNT: request_count.wish,
    ScalingPolicy.UTILISATION: utilisation.wish,
    ScalingPolicy.LATENCY: latency.wish,
}
TURN_S = 60.0
"""A pool turns from up to down, or from down to up, at most once in so long."""
_LATE_FACTOR = 3.0
_LATE_UNKNOWN_S = 600.0
_LATE_LEAST_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 600.0
_WHOLE = 1e-9


@dataclass(frozen=True, slots=True)
class Decision:
    """What a tick decided. `desired` counts all capacity, of other launchers too, and never who drains or failed.

    `raw`: what the one named `policy` wished; `limits`: what held that back. `replace`: launches that are to be dropped; their
    successors are part of `desired`. `tell`: False for the same hold or block as before.
    """

    desired: int
    action: Action
    policy: str
    reason: str
    raw: float
    limits: tuple[str, ...] = ()
    replace: tuple[str, ...] = ()
    tell: bool = True


def decide(seen: Seen, policy: PoolPolicy, history: History) -> tuple[Decision, History]:
    """The decision of this tick, and what the next one must know."""
    late = _late(seen)
    capacity = seen.count(Phase.READY, Phase.STARTING, Phase.LOADING) - len(late)
    if seen.blind:
        there = capacity if history.first_at_s is None else history.base
        return _told(Decision(there, Action.HOLD, "", f"could not observe: {seen.blind}", float(there), ("blind",)), history)
    if policy.paused:
        decision = Decision(capacity, Action.HOLD, "", f"paused; {capacity} there", float(capacity), ("paused",))
        return _told(decision, _unmoved(history, seen, policy, capacity))
    history = _begun(history, seen, policy, capacity)
    name, wish = _wish(seen, policy, history, late)
    limits: list[str] = []
    desired, history = _limited(seen, policy, history, wish, limits)
    replaced, kept, history = _replaced(seen, policy, history, late)
    decision = _decision(seen, policy, history, (name, wish), (desired, capacity, kept), tuple(limits), replaced)
    return _told(decision, _moved(history, seen.at_s, decision))


def _late(seen: Seen) -> frozenset[int]:
    """Places of workers whose start took so long that it has failed."""
    longest_s = max(_LATE_LEAST_S, _LATE_FACTOR * seen.cold_start_s[1]) if seen.cold_start_s else _LATE_UNKNOWN_S
    return frozenset(
        place
        for place, worker in enumerate(seen.workers)
        if worker.phase in (Phase.STARTING, Phase.LOADING) and worker.age_s > longest_s
    )


def _begun(history: History, seen: Seen, policy: PoolPolicy, capacity: int) -> History:
    """The first look counts what runs as a wish: it stays for one down window."""
    busy = bool(seen.running or (seen.waiting and not seen.queue_paused))
    if history.first_at_s is None:
        return replace(history, first_at_s=seen.at_s, busy_at_s=seen.at_s, base=capacity, peaks=((seen.at_s, capacity),))
    if busy:
        return replace(history, busy_at_s=seen.at_s)
    return replace(history, initial_over=history.initial_over or _idle_s(history, seen) >= policy.idle_timeout_s)


def _unmoved(history: History, seen: Seen, policy: PoolPolicy, capacity: int) -> History:
    """While it is paused what is there is what is wished."""
    history = replace(_begun(history, seen, policy, capacity), base=capacity)
    return wished(history, seen.at_s, capacity, policy.up_window_s, policy.down_window_s)


def _idle_s(history: History, seen: Seen) -> float:
    return seen.at_s - history.busy_at_s


def _wish(seen: Seen, policy: PoolPolicy, history: History, late: frozenset[int]) -> tuple[str, Wish]:
    """The largest of the policies' wishes, and whose it is."""
    since_up_s = math.inf if history.up_at_s is None else seen.at_s - history.up_at_s
    view = view_of(seen, late, since_up_s)
    wishes = [(str(name), WISHES[name](view, policy)) for name in policy.policies]
    name, wish = max(wishes, key=lambda named: named[1].workers, default=("", Wish(0.0, "no rule asks for workers")))
    if view.waiting and wish.workers <= 0:
        return name, Wish(1.0, f"{wish.reason}; {view.waiting} waiting need one")
    return name, wish


def _limited(seen: Seen, policy: PoolPolicy, history: History, wish: Wish, limits: list[str]) -> tuple[int, History]:
    """From the wish to a number of workers: bounds, windows, steps, turns; `limits` takes the names of those that acted."""
    wanted = math.ceil(wish.workers - _WHOLE)
    least, most = _bounds(seen, policy)
    base = min(max(history.base, least), most)
    wanted = _kept_warm(seen, policy, history, wanted, limits)
    if wanted < least:
        limits.append(f"min {least}" if least == min(policy.min, most) else f"floor {least}")
    if wanted > most:
        limits.append(f"max {most}")
    wanted = min(max(wanted, least), most)
    history = wished(history, seen.at_s, wanted, policy.up_window_s, policy.down_window_s)
    wakes = base == 0 and wanted > 0
    wanted = wanted if wakes else _windowed(seen, policy, history, (base, wanted), limits)
    wanted = _stepped(policy, base, wanted, limits)
    wanted = wanted if wakes else _unturned(seen, history, (base, wanted), limits)
    return wanted, history


def _bounds(seen: Seen, policy: PoolPolicy) -> tuple[int, int]:
    """Least and most workers at this moment; max is the stronger."""
    moment = datetime.fromtimestamp(seen.at_s, UTC)
    minute = moment.hour * 60 + moment.minute
    floors = [f.least for f in policy.floors if _in_force(f, moment.weekday(), minute)]
    return min(max(policy.min, *floors, 0), policy.max), policy.max


def _in_force(floor: Floor, day: int, minute: int) -> bool:
    if floor.from_minute < floor.to_minute:
        return floor.from_minute <= minute < floor.to_minute and (not floor.days or day in floor.days)
    # Over midnight: the part after it belongs to the day before.
    began = day if minute >= floor.from_minute else (day - 1) % 7
    return (minute >= floor.from_minute or minute < floor.to_minute) and (not floor.days or began in floor.days)


def _kept_warm(seen: Seen, policy: PoolPolicy, history: History, wanted: int, limits: list[str]) -> int:
    """What stays until the pool was idle for long: one worker, and `initial` until it was so for the first time."""
    if _idle_s(history, seen) >= policy.idle_timeout_s:
        return wanted
    initial = 0 if history.initial_over else policy.initial
    warm = max(1 if history.base else 0, initial)
    if wanted < initial and history.base < initial:
        limits.append(f"initial {initial}")
    elif wanted < warm:
        limits.append(f"idle {_idle_s(history, seen):.0f} s < {policy.idle_timeout_s:g} s")
    return max(wanted, warm)


def _windowed(seen: Seen, policy: PoolPolicy, history: History, between: tuple[int, int], limits: list[str]) -> int:
    """Up only to the least wish of a whole up window, down only to the peak of the down window, or at once if idle for long."""
    base, wanted = between
    began_s = history.first_at_s or 0.0
    if wanted > base:
        least = dip(history) if seen.at_s - began_s >= policy.up_window_s else min(base, dip(history))
        if least < wanted:
            limits.append(f"up_window {policy.up_window_s:g} s")
        return max(base, least)
    idle = _idle_s(history, seen) >= policy.idle_timeout_s and seen.at_s - began_s >= policy.down_window_s
    if wanted < base and not idle:
        most = min(base, peak(history))
        if most > wanted:
            limits.append(f"down_window {policy.down_window_s:g} s")
        return most
    return wanted


def _stepped(policy: PoolPolicy, base: int, wanted: int, limits: list[str]) -> int:
    if policy.step_up and wanted > base + policy.step_up:
        limits.append(f"step_up<={policy.step_up}")
        return base + policy.step_up
    if policy.step_down and wanted < base - policy.step_down:
        limits.append(f"step_down<={policy.step_down}")
        return base - policy.step_down
    return wanted


def _unturned(seen: Seen, history: History, between: tuple[int, int], limits: list[str]) -> int:
    """Another turn so soon after the last one would be flapping."""
    base, wanted = between
    direction = (wanted > base) - (wanted < base)
    turns = direction and history.direction and direction != history.direction
    if turns and history.turned_at_s is not None and seen.at_s - history.turned_at_s < TURN_S:
        limits.append(f"one turn in {TURN_S:g} s")
        return base
    return wanted


def _replaced(seen: Seen, policy: PoolPolicy, history: History, late: frozenset[int]) -> tuple[tuple[str, ...], int, History]:
    """Launches to be dropped; how many failed ones stay for now and keep their place; when the next may be replaced.

    One that started too slowly goes at once: it may hold the memory its successor needs. One that failed of itself is
    replaced after a pause that doubles, and not while nothing could be placed: what ails it would befall the next as well.
    """
    slow = tuple(seen.workers[place].launch for place in sorted(late) if seen.workers[place].launch)
    failed = tuple(worker.launch for worker in seen.workers if worker.phase is Phase.FAILED and worker.launch)
    if not slow and not failed:
        over = seen.at_s >= history.replace_at_s + _LONGEST_PAUSE_S
        return (), 0, replace(history, failures=0) if over and history.failures else history
    if failed and (seen.unplaceable or seen.at_s < history.replace_at_s):
        return slow, len(failed), history
    failures = history.failures + (1 if failed else 0)
    pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (failures - 1)) if failed else 0.0
    return (*slow, *failed), 0, replace(history, failures=failures, replace_at_s=max(history.replace_at_s, seen.at_s + pause_s))


def _decision(
    seen: Seen,
    policy: PoolPolicy,
    history: History,
    wished_by: tuple[str, Wish],
    numbers: tuple[int, int, int],
    limits: tuple[str, ...],
    replaced: tuple[str, ...],
) -> Decision:
    name, wish = wished_by
    desired, capacity, kept = numbers
    raw, reason = round(wish.workers, 3), wish.reason
    if seen.queue_paused and seen.waiting:
        reason += f"; the queue is paused with {seen.waiting} waiting"
    if replaced:
        reason += f"; {len(replaced)} failed to start and are replaced"
    could = capacity if seen.unplaceable else max(capacity, desired - kept)
    if desired > could:
        why = seen.unplaceable or _failure(seen, history, kept)
        return Decision(
            could, Action.BLOCKED, name, f"{reason}; {desired} wanted, {capacity} there: {why}", raw, limits, replaced
        )
    if desired == history.base:
        if desired != capacity:
            reason += f"; {capacity} there, {desired} wanted"
        return Decision(desired, Action.HOLD, name, reason, raw, limits, replaced)
    action = Action.UP if desired > history.base else Action.DOWN
    idle_s = _idle_s(history, seen)
    if action is Action.DOWN and idle_s >= policy.idle_timeout_s:
        reason += f"; idle {idle_s:.0f} s >= {policy.idle_timeout_s:g} s"
    return Decision(desired, action, name, reason, raw, limits, replaced)


def _failure(seen: Seen, history: History, kept: int) -> str:
    error = next((w.error for w in seen.workers if w.phase is Phase.FAILED and w.error), "")
    wait_s = max(0.0, history.replace_at_s - seen.at_s)
    return f"{kept} failed{f' ({error})' if error else ''}, replaced in {wait_s:.0f} s"


def _moved(history: History, at_s: float, decision: Decision) -> History:
    """What was decided becomes the base; a change of direction is a turn. A block is none: it ends by itself."""
    if decision.action is Action.BLOCKED:
        return replace(history, base=decision.desired)
    direction = (decision.desired > history.base) - (decision.desired < history.base)
    if not direction:
        return history
    turned = bool(history.direction) and direction != history.direction and history.base > 0
    return replace(
        history,
        base=decision.desired,
        direction=direction,
        turned_at_s=at_s if turned else history.turned_at_s,
        up_at_s=at_s if direction > 0 else history.up_at_s,
    )


def _told(decision: Decision, history: History) -> tuple[Decision, History]:
    """A hold or block is told when it begins, and again when its cause or number is another."""
    if decision.action in (Action.UP, Action.DOWN):
        return decision, replace(history, told=())
    cause = decision.reason.rpartition(": ")[2] if decision.action is Action.BLOCKED else ""
    told = (decision.action, *(re.sub(r"[\d.]+", "#", text) for text in (*decision.limits, cause)), str(decision.desired))
    news = told != history.told or bool(decision.replace)
    return replace(decision, tell=news), replace(history, told=told)
