"""The plain words of what the autoscaler does, each with its numbers. Pure. Never here: which of them hold (scaled.py)."""

from collections.abc import Sequence

from dispatch.diagnosis import diagnosis
from dispatch.scaling import Action, DecisionRecord, LaunchReport, LaunchState, Leadership, PoolOverride, PoolStatus
from gateway.explained_words import span
from gateway.pool_views import PoolView, Starting

_MOST_CHARACTERS = 300


def pool_words(status: PoolStatus, starting: Sequence[Starting]) -> str:
    """A pool in one line."""
    there = ", ".join(f"{count} {state}" for state, count in status.workers.items() if count) or "no workers"
    low, high = status.decided.bounds
    return f"{status.pool}: {there} -> {status.decided.to_workers} (of {low} to {high}){_left(starting)}; {status.decided.reason}"


def decision(record: DecisionRecord, leader: str, now_ms: int) -> str:
    """The last decision."""
    held = f", {record.repeated + 1} times the same" if record.repeated else ""
    inputs = ", ".join(f"{name} {_number(value)}" for name, value in record.inputs.items() if value is not None)
    seen = f" ({inputs})" if inputs else ""
    return f"{leader} {_verb(record)} {_ago(record, now_ms)}{held} by {record.policy}: {record.reason}{seen}"


def change(record: DecisionRecord, now_ms: int) -> str:
    """The last decision that was not to hold."""
    return f"before that it {_verb(record)} {_ago(record, now_ms)}: {record.reason}"


def limited(record: DecisionRecord) -> str:
    """What keeps the number from being what the policy asked for."""
    by = ", ".join(record.limits) or f"the bounds {record.bounds[0]} to {record.bounds[1]}, and whole workers"
    return f"the policy asked for {record.desired_raw:g}, {record.to_workers} there should be; held by {by}"


def starting(each: Starting, cold_start_s: float | None) -> str:
    """One worker that is on its way."""
    where = f" on {each.host}" if each.host else ""
    doing = f"{each.state} {each.progress}".strip()
    if each.left_s is None or cold_start_s is None:
        return f"{each.launch}{where} is {doing} for {each.age_s:.1f} s; how long that takes here is not known yet"
    if each.left_s == 0:
        return f"{each.launch}{where} is {doing} for {each.age_s:.1f} s, longer than the usual {cold_start_s:.1f} s"
    usual = f"of about {cold_start_s:.1f} s: ready in about {each.left_s:.1f} s"
    return f"{each.launch}{where} is {doing} for {each.age_s:.1f} s {usual}"


def cause(report: LaunchReport) -> str:
    """Why it ended, in one short line: a launcher of one's own may have put more there."""
    return next(iter(report.error.splitlines()), "")[:_MOST_CHARACTERS]


def trouble(report: LaunchReport) -> str:
    """One worker that does not come up."""
    where = f" on {report.host}" if report.host else ""
    why = f": {cause(report)}" if report.error else ""
    known = diagnosis(report.last_words)
    heard = f"; it said: {known}" if known else ""
    match report.state:
        case LaunchState.CRASH_LOOP:
            return f"{report.id}{where} crash-loops: it ended {report.exits} times and is not started again{why}{heard}"
        case LaunchState.BACKOFF:
            return f"{report.id}{where} ended {report.exits} times and is started again soon{why}{heard}"
        case _:
            return f"{report.id}{where} cannot be placed{why}"


def override(value: PoolOverride) -> str:
    """What people set, but for the pause."""
    parts = [f"{name} {_number(given)}" for name, given in (("min", value.min), ("max", value.max)) if given is not None]
    parts += [f"target {value.target_s:g} s"] if value.target_s is not None else []
    return f"set by an operator: {', '.join(parts)}" if parts else ""


def paused(pool: str) -> str:
    """That it is left as it is."""
    return f"paused: it is left as it is until somebody says `penstock scale resume {pool}`"


def no_leader(group: str, leader: Leadership, silent_ms: int) -> str:
    """That nobody decides."""
    before = f" ({leader.leader} did, epoch {leader.epoch})" if leader.leader else ""
    return f"nobody leads group {group!r}{before}: nothing was decided for {span(silent_ms)}, until an autoscaler runs"


def for_a_request(view: PoolView, told: DecisionRecord, on_their_way: Sequence[Starting]) -> str:
    """What the autoscaler does for a model, in one line."""
    name = f"autoscaler ({view.status.pool})"
    if view.paused:
        return f"{name}: {paused(view.status.pool)}"
    if told.dry_run:
        return f"{name}: a dry run, it starts nothing"
    if not view.leader.leads:
        return f"{name}: {no_leader(view.status.group, view.leader, view.silent_ms)}"
    if told.action is Action.HOLD:
        said = f"holds {told.to_workers}, decided {_ago(told, view.now_ms)}: {told.reason}"
    elif told.action is Action.BLOCKED:
        said = f"more are needed and cannot be had: {told.reason}"
    else:
        said = f"{told.from_workers} -> {told.to_workers} decided {_ago(told, view.now_ms)}"
    parts = [f"{name}: {said}{_left(on_their_way)}", *(trouble(report) for report in view.troubled()[:1])]
    if view.status.unplaceable:
        parts.append(f"one more cannot be placed: {view.status.unplaceable}")
    return "; ".join(parts)


def _left(on_their_way: Sequence[Starting]) -> str:
    if not on_their_way:
        return ""
    first = on_their_way[0].left_s
    known = "" if first is None else " (longer than usual)" if first == 0 else f" (about {first:.1f} s left)"
    return f", {len(on_their_way)} starting{known}"


def _verb(record: DecisionRecord) -> str:
    match record.action:
        case Action.UP:
            return f"went up {record.from_workers} -> {record.to_workers}"
        case Action.DOWN:
            return f"went down {record.from_workers} -> {record.to_workers}"
        case Action.BLOCKED:
            return f"wanted more than {record.to_workers} and could not have it"
        case Action.HOLD:
            return f"held {record.to_workers}"


def _ago(record: DecisionRecord, now_ms: int) -> str:
    return f"{span(now_ms - record.at_ms)} ago"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
