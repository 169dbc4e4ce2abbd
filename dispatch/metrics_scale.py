"""The autoscaler's metrics: their names and labels, from what its leader last wrote. Pure.

Never here: reading it (gateway/pools.py), all other metrics (metrics.py). Labels are pools and groups, never workers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dispatch.scaling import Leadership, PoolStatus
from dispatch.states import WorkerState


@dataclass(frozen=True, slots=True)
class ScaleView:
    """`leaders` by group; `counts`: decisions by pool and action."""

    statuses: Sequence[PoolStatus] = ()
    leaders: Mapping[str, Leadership] = field(default_factory=dict)
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def families(self) -> Iterable[Metric]:
        """Nothing of it where no autoscaler ever told of a pool."""
        desired = GaugeMetricFamily(
            "penstock_autoscaler_desired_workers",
            "Workers the policy asks for, before bounds, windows and steps",
            labels=["pool"],
        )
        bounded = GaugeMetricFamily(
            "penstock_autoscaler_bounded_workers", "Workers there should be, after those", labels=["pool"]
        )
        actual = GaugeMetricFamily("penstock_autoscaler_actual_workers", "Workers that are ready", labels=["pool"])
        by_state = GaugeMetricFamily("penstock_autoscaler_pool_workers", "A pool's workers by state", labels=["pool", "state"])
        cold = GaugeMetricFamily("penstock_autoscaler_cold_start_seconds", "Order to ready, as learned", labels=["pool"])
        decided = GaugeMetricFamily(
            "penstock_autoscaler_last_decision_timestamp_seconds", "When a pool was last decided on (unix)", labels=["pool"]
        )
        for status in self.statuses:
            pool = [status.pool]
            desired.add_metric(pool, status.decided.desired_raw)
            bounded.add_metric(pool, status.decided.to_workers)
            actual.add_metric(pool, ready(status))
            for state, count in status.workers.items():
                by_state.add_metric([status.pool, state], count)
            if status.cold_start_s is not None:
                cold.add_metric(pool, status.cold_start_s)
            decided.add_metric(pool, status.decided.at_ms / 1000)
        leads = GaugeMetricFamily("penstock_autoscaler_leader", "Whether a leader's lease stands", labels=["group"])
        epoch = GaugeMetricFamily("penstock_autoscaler_leader_epoch", "How often a lease began", labels=["group"])
        for group, leader in self.leaders.items():
            leads.add_metric([group], float(leader.leads))
            epoch.add_metric([group], leader.epoch)
        decisions = CounterMetricFamily(
            "penstock_autoscaler_decisions", "Decisions, also those to hold", labels=["pool", "action"]
        )
        for (pool_name, action), count in self.counts.items():
            decisions.add_metric([pool_name, action], count)
        yield from (desired, bounded, actual, by_state, cold, decided, leads, epoch, decisions)


def ready(status: PoolStatus) -> int:
    """How many workers of a pool take requests: what is asked for should come to be this."""
    return status.workers.get(WorkerState.READY, 0)
