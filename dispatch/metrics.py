"""The metrics: their names, labels and buckets, and how values become families. The only place for them.

Two kinds. What a gateway sees itself is counted in a registry of its own. What the whole Penstock knows is read from
Redis at scrape time: every gateway then shows the same number, so dashboards use `max by()`, not `sum`.
Never here: Redis, HTTP. Labels are bounded: never a request id, never a tenant.
"""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dispatch.metrics_scale import ScaleView
from dispatch.records import QueueStats
from dispatch.reports import Heartbeat
from dispatch.states import ENDINGS, WorkerState

# LLM requests are long: the client's default, 10 s at most, would say nothing.
TIME_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)

REJECT_REASONS = {
    "queue_full": "queue_full",
    "payload_too_large": "too_large",
    "context_length_exceeded": "too_large",
    "unschedulable": "no_capacity",
    "draining": "draining",
    "redis_unavailable": "redis_unavailable",
    "out_of_memory": "redis_memory",
    "unauthorized": "unauthorized",
}
"""Error code -> `reason` of penstock_requests_rejected_total; other refusals are plain bad requests."""

MOST_DEAD_LETTERS = 1_000
_DEAD_LETTERS_HELP = f"Dead letters kept, of the newest {MOST_DEAD_LETTERS} of all queues"

# counter in {s}:stats:<model> -> (family, the value of its label)
_TOTALS: Mapping[str, tuple[str, str | None]] = {
    **{ending.value: ("penstock_requests", ending.value) for ending in sorted(ENDINGS)},
    "dead": ("penstock_dead_letters", None),  # these ended as failed, too
    "enqueued": ("penstock_requests_accepted", None),
    "charged": ("penstock_redeliveries", "charged"),
    "not_begun": ("penstock_redeliveries", "not_begun"),
    "released": ("penstock_redeliveries", "released"),
    "prompt_tokens": ("penstock_prompt_tokens", None),
    "completion_tokens": ("penstock_generation_tokens", None),
}


class GatewayMetrics:
    """What one gateway process sees."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.rejected = Counter("penstock_requests_rejected", "Requests refused at submit", ["reason"], registry=self.registry)
        self.streams_open = Gauge("penstock_streams_open", "Streams this gateway has open", registry=self.registry)
        self.disconnects = Counter(
            "penstock_client_disconnects", "Clients that left before the end", ["phase"], registry=self.registry
        )
        self.readers_cut = Counter("penstock_readers_cut", "Readers cut because they did not read", registry=self.registry)
        self.first_token = Histogram(
            "penstock_time_to_first_token_seconds",
            "Submit to first output, as this gateway saw it",
            ["model"],
            buckets=TIME_BUCKETS_S,
            registry=self.registry,
        )
        self.duration = Histogram(
            "penstock_request_duration_seconds",
            "Submit to end, as this gateway saw it",
            ["model"],
            buckets=TIME_BUCKETS_S,
            registry=self.registry,
        )
        Gauge("penstock_build_info", "Which release this is", ["version"], registry=self.registry).labels(version).set(1)

    def reject(self, code: str) -> None:
        """Count a refusal, if its code is one of those."""
        reason = REJECT_REASONS.get(code)
        if reason:
            self.rejected.labels(reason).inc()


@dataclass(frozen=True, slots=True, eq=False)
class ClusterView:
    """What Redis told at scrape time; `queues` and `workers` are empty when it did not answer."""

    redis_up: bool
    redis_answer_s: float
    queues: Sequence[QueueStats]
    workers: Sequence[Heartbeat]
    now_ms: int
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    webhooks_owed: int = 0
    scale: ScaleView = field(default_factory=ScaleView)

    def collect(self) -> Iterable[Metric]:
        """The families, as a prometheus collector yields them."""
        yield GaugeMetricFamily("penstock_redis_up", "Whether Redis answered", value=float(self.redis_up))
        if not self.redis_up:
            return
        yield GaugeMetricFamily("penstock_redis_answer_seconds", "How long its answer to a PING took", value=self.redis_answer_s)
        yield GaugeMetricFamily("penstock_webhooks_owed", "Endings whose webhook has not arrived yet", value=self.webhooks_owed)
        yield from self._queue_families()
        yield from self._worker_families()
        yield from self.scale.families()

    def _queue_families(self) -> Iterable[Metric]:
        depth = GaugeMetricFamily("penstock_queue_depth", "Requests that wait", labels=["queue", "priority"])
        oldest = GaugeMetricFamily("penstock_queue_oldest_age_seconds", "How long the oldest has waited", labels=["queue"])
        running = GaugeMetricFamily("penstock_requests_running", "Requests workers hold", labels=["queue"])
        parked = GaugeMetricFamily("penstock_pulls_parked", "Workers whose pull waits for requests", labels=["queue"])
        counters = {
            name: CounterMetricFamily(name, what, labels=["queue", *([label] if label else [])])
            for name, what, label in (
                ("penstock_requests", "Ended requests by how they ended", "outcome"),
                ("penstock_requests_accepted", "Requests taken in", None),
                ("penstock_redeliveries", "Grants that did not end their request", "reason"),
                ("penstock_dead_letters", "Requests that used up their attempts or killed their workers", None),
                ("penstock_prompt_tokens", "Tokens read", None),
                ("penstock_generation_tokens", "Tokens written", None),
            )
        }
        for queue in self.queues:
            for line in queue.lines:
                depth.add_metric([queue.model, line.priority.value], line.backlog)
            oldest.add_metric([queue.model], queue.oldest_wait_ms / 1000)
            running.add_metric([queue.model], queue.running)
            parked.add_metric([queue.model], queue.parked)
            for total, (name, label) in _TOTALS.items():
                if total in queue.totals:
                    counters[name].add_metric([queue.model, *([label] if label else [])], queue.totals[total])
        dead = GaugeMetricFamily("penstock_dead_letter_depth", _DEAD_LETTERS_HELP, labels=["queue"])
        for name in {queue.model for queue in self.queues} | self.dead_letters.keys():
            dead.add_metric([name], self.dead_letters.get(name, 0))
        yield from (dead, depth, oldest, running, parked, *counters.values())

    def _worker_families(self) -> Iterable[Metric]:
        states = Tally(worker.state for worker in self.workers)
        by_state = GaugeMetricFamily("penstock_workers", "Workers by state", labels=["state"])
        for state in WorkerState:
            if state is not WorkerState.GONE:
                by_state.add_metric([state.value], states[state])
        age = GaugeMetricFamily("penstock_worker_heartbeat_age_seconds", "Since a worker's last beat", labels=["worker"])
        weight = GaugeMetricFamily("penstock_worker_pull_weight", "Measured speed a worker pulls with", labels=["worker"])
        slots = GaugeMetricFamily("penstock_worker_slots", "Requests a worker takes at once", labels=["worker"])
        probe_ok = GaugeMetricFamily("penstock_worker_probe_ok", "Whether the engine's last probe went well", labels=["worker"])
        probe_age = GaugeMetricFamily("penstock_worker_probe_age_seconds", "Since the engine's last probe", labels=["worker"])
        probe_took = GaugeMetricFamily("penstock_worker_probe_seconds", "How long the last probe took", labels=["worker"])
        for worker in self.workers:
            age.add_metric([worker.id], max(0, self.now_ms - worker.beat_at_ms) / 1000)
            weight.add_metric([worker.id], worker.weight)
            slots.add_metric([worker.id], worker.slots)
            if worker.probe is not None:
                probe_ok.add_metric([worker.id], float(worker.probe.ok))
                probe_age.add_metric([worker.id], max(0, self.now_ms - worker.probe.at_ms) / 1000)
                probe_took.add_metric([worker.id], worker.probe.took_s)
        yield from (by_state, age, weight, slots, probe_ok, probe_age, probe_took)


def exposition(own: GatewayMetrics, view: ClusterView) -> bytes:
    """Both kinds in Prometheus's text format."""
    cluster = CollectorRegistry()
    cluster.register(view)
    return generate_latest(own.registry) + generate_latest(cluster)
