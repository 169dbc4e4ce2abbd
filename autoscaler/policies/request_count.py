"""`request_count`: one worker for so many requests, waiting or running. Pure."""

from autoscaler.policies.base import PoolPolicy, View, Wish


def wish(view: View, policy: PoolPolicy) -> Wish:
    """(waiting + running) / requests_per_worker."""
    running = view.seen.running
    return Wish(
        (view.waiting + running) / policy.requests_per_worker,
        f"{view.waiting} waiting + {running} running, {policy.requests_per_worker:g} a worker",
    )
