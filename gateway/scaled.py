"""Pools as the native API shows them: how many workers, why, and what stands in the way; what a request is told of them. Pure.

Never here: reading it (pools.py), its words (scaled_words.py), deciding anything (the autoscaler).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from dispatch.diagnosis import diagnosis
from dispatch.metrics_scale import ready
from dispatch.records import QueueStats
from dispatch.scaling import Action, DecisionRecord, LaunchReport, LaunchState, PoolOverride
from gateway import scaled_words as words
from gateway.pool_views import PoolView, Starting


class Why(StrEnum):
    """What an explanation of a pool is made of."""

    DECISION = "decision"
    CHANGE = "change"  # the last decision that was not to hold
    LIMITED = "limited"  # the policy asks for something else, and is held back
    STARTING = "starting"
    CRASH_LOOP = "crash_loop"
    BACKOFF = "backoff"
    REFUSED = "refused"
    UNPLACEABLE = "unplaceable"
    OVERRIDE = "override"
    PAUSED = "paused"
    NO_LEADER = "no_leader"
    DRY_RUN = "dry_run"


# ---- pages


def pool_document(view: PoolView) -> dict[str, Any]:
    """A pool as GET /v1/pools shows it; nothing in it changes by time alone, so it can carry an ETag."""
    status = view.status
    base = f"/v1/pools/{quote(status.pool, safe='')}"
    return {
        "object": "pool",
        "pool": status.pool,
        "model": status.model,
        "group": status.group,
        "launcher": status.launcher,
        "min": status.decided.bounds[0],
        "max": status.decided.bounds[1],
        "wanted": status.decided.desired_raw,
        "desired": status.decided.to_workers,
        "actual": ready(status),
        "workers": dict(status.workers),
        "cold_start_s": status.cold_start_s,
        "unplaceable": status.unplaceable or None,
        "paused": view.paused,
        "override": override_document(view.override),
        "leader": {"id": view.leader.leader or None, "epoch": view.leader.epoch, "leads": view.leader.leads},
        "decided": decision_document(status.decided),
        "crash_loops": sum(1 for report in status.reports if report.state is LaunchState.CRASH_LOOP),
        "launches": [launch_document(report) for report in status.reports],
        "links": {"self": base, "explain": f"{base}/explain", "history": f"{base}/history"},
    }


def decision_document(record: DecisionRecord, entry: str = "") -> dict[str, Any]:
    """A decision as the log tells it; `entry` is its place there."""
    return {
        **({"id": entry} if entry else {}),
        "at_ms": record.at_ms,
        "pool": record.pool,
        "model": record.model,
        "action": record.action,
        "from": record.from_workers,
        "to": record.to_workers,
        "desired_raw": record.desired_raw,
        "bounds": list(record.bounds),
        "policy": record.policy,
        "reason": record.reason,
        "inputs": dict(record.inputs),
        "limits": list(record.limits),
        "dry_run": record.dry_run,
        "epoch": record.epoch,
        "repeated": record.repeated,
    }


def launch_document(report: LaunchReport) -> dict[str, Any]:
    """What the hands know of one worker that was ordered, but not what it wrote: a library may print what it works on."""
    return {
        "id": report.id,
        "state": report.state,
        "host": report.host or None,
        "pid": report.pid or None,
        "since_at_ms": report.since_ms or None,
        "exits": report.exits,
        "error": words.cause(report) or None,
        "diagnosis": diagnosis(report.last_words) or None,
    }


def override_document(override: PoolOverride | None) -> dict[str, Any] | None:
    """What people set; null fields are as in the settings."""
    if override is None:
        return None
    return {"min": override.min, "max": override.max, "target_s": override.target_s, "paused": override.paused}


def scale_document(stats: QueueStats) -> dict[str, Any]:
    """The one number that other scalers go by: requests there is work for. What a paused queue holds back is none."""
    return {
        "object": "scale",
        "model": stats.model,
        "value": stats.running + (0 if stats.paused else stats.backlog),
        "waiting": stats.backlog,
        "running": stats.running,
        "paused": stats.paused,
        "oldest_wait_ms": stats.oldest_wait_ms,
    }


# ---- explanations


def explained_pool(view: PoolView, change: DecisionRecord | None) -> dict[str, Any]:
    """Why there are as many workers as there are. `change`: the last decision that was not to hold, if the log still has it."""
    starting = view.starting()
    return {
        **pool_document(view),
        "object": "explanation",
        "decided_age_ms": view.silent_ms,
        "changed": change and decision_document(change),
        "starting": [_starting_document(each) for each in starting],
        "why": [{"code": code, "words": said} for code, said in _reasons(view, change, starting)],
        "summary": words.pool_words(view.status, starting),
    }


def _reasons(view: PoolView, change: DecisionRecord | None, starting: Sequence[Starting]) -> list[tuple[Why, str]]:
    status, decided = view.status, view.status.decided
    found = []
    if not view.leader.leads:
        found.append((Why.NO_LEADER, words.no_leader(status.group, view.leader, view.silent_ms)))
    if view.paused:
        found.append((Why.PAUSED, words.paused(status.pool)))
    if decided.dry_run:
        found.append((Why.DRY_RUN, "a dry run: it is decided and recorded, and nothing is started or ended"))
    found.append((Why.DECISION, words.decision(decided, status.leader, view.now_ms)))
    if change is not None and change != decided:
        found.append((Why.CHANGE, words.change(change, view.now_ms)))
    if decided.limits or decided.desired_raw != decided.to_workers:
        found.append((Why.LIMITED, words.limited(decided)))
    if view.override is not None and (set_by := words.override(view.override)):
        found.append((Why.OVERRIDE, set_by))
    found += [(Why.STARTING, words.starting(each, status.cold_start_s)) for each in starting]
    found += [(Why(report.state.value), words.trouble(report)) for report in view.troubled()]
    if status.unplaceable:
        found.append((Why.UNPLACEABLE, f"one more cannot be placed: {status.unplaceable}"))
    return found


def _starting_document(each: Starting) -> dict[str, Any]:
    return {
        "launch": each.launch,
        "host": each.host or None,
        "state": each.state,
        "progress": each.progress or None,
        "age_s": round(each.age_s, 1),
        "left_s": None if each.left_s is None else round(each.left_s, 1),
    }


# ---- what a waiting request is told


@dataclass(frozen=True, slots=True)
class Help:
    """What the autoscaler may do for requests of one model. `most_tokens`: the largest room a worker of it ever offered."""

    pools: Sequence[PoolView] = ()
    changes: Mapping[str, DecisionRecord] | None = None
    most_tokens: int = 0

    def may_come(self, cost_tokens: int, *, larger: bool) -> bool:
        """Whether a worker that could hold so much may still come; `larger`: those there are too small, so it must be another."""
        if self.most_tokens < cost_tokens:
            return False
        return any(view.has_more() if larger else view.could_start() for view in self.pools)

    def first_ready_s(self) -> float | None:
        """When the next worker should be ready; None: nobody knows, or none is on its way."""
        known = [s.left_s for view in self.pools for s in view.starting() if s.left_s is not None]
        return min(known, default=None)

    def documents(self) -> list[dict[str, Any]]:
        """One for each pool of the model."""
        return [self._document(view) for view in self.pools]

    def words(self) -> str:
        """All of it in one line; "" where there is no pool."""
        return "; ".join(str(document["words"]) for document in self.documents())

    def _document(self, view: PoolView) -> dict[str, Any]:
        change = (self.changes or {}).get(view.status.pool)
        told = view.status.decided if change is None or view.status.decided.action is not Action.HOLD else change
        starting = view.starting()
        return {
            "pool": view.status.pool,
            "action": told.action,
            "from": told.from_workers,
            "to": told.to_workers,
            "age_ms": max(0, view.now_ms - told.at_ms),
            "reason": told.reason,
            "workers": dict(view.status.workers),
            "starting": [_starting_document(each) for each in starting],
            "may_start": view.could_start(),
            "crash_loops": sum(1 for r in view.troubled() if r.state is LaunchState.CRASH_LOOP),
            "words": words.for_a_request(view, told, starting),
        }
