"""From what was seen and decided to what is written of it: the entry of the log. Pure. Never here: writing it (reconcile.py)."""

from autoscaler.policy import Decision
from autoscaler.pools import Pool
from autoscaler.seen import Phase, Seen
from dispatch.scaling import DecisionRecord


def record_of(pool: Pool, seen: Seen, decision: Decision, epoch: int, now_ms: int, *, dry_run: bool) -> DecisionRecord:
    """The decision with its inputs."""
    return DecisionRecord(
        at_ms=now_ms,
        pool=pool.name,
        model=pool.model,
        action=decision.action,
        from_workers=seen.count(Phase.STARTING, Phase.LOADING, Phase.READY),
        to_workers=decision.desired,
        desired_raw=round(decision.raw, 2),
        bounds=(pool.policy.min, pool.policy.max),
        policy=decision.policy,
        reason=decision.reason,
        inputs={
            "waiting": seen.waiting,
            "waiting_tokens": seen.waiting_tokens,
            "oldest_wait_s": round(seen.oldest_wait_s, 1),
            "running": seen.running,
            "ready": seen.count(Phase.READY),
            "starting": seen.count(Phase.STARTING, Phase.LOADING),
            "draining": seen.count(Phase.DRAINING),
            "failed": seen.count(Phase.FAILED),
            "tokens_per_s_each": round(seen.tokens_per_s_each, 1),
            "cold_start_p90_s": round(seen.cold_start_s[1], 1) if seen.cold_start_s else None,
            **({"ttft_p95_s": round(seen.ttft_p95_s, 2)} if seen.ttft_p95_s is not None else {}),
        },
        limits=decision.limits,
        dry_run=dry_run,
        epoch=epoch,
    )
