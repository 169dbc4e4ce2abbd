"""What a tick looks at: the line, the heartbeats, what the hands report, what was learned of starts. Nothing is changed here.

Never here: what follows from it (policy.py), who carries it out (reconcile.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from autoscaler.seen import Phase, Seen, SeenWorker
from autoscaler.speed import work_tokens_per_s
from dispatch.demand import Demand
from dispatch.fleet import Fleet
from dispatch.reports import Heartbeat
from dispatch.scale_store import ScaleStore
from dispatch.scaling import Launch, LaunchReport, LaunchState, PoolOrders
from dispatch.states import WorkerState

_TTFT_WITHIN_MS = 60_000
_SHARE_EVERY_MS = 10_000
_P90, _P95 = 0.9, 0.95

_PHASES: Mapping[WorkerState, Phase] = {
    WorkerState.STARTING: Phase.STARTING,
    WorkerState.LOADING: Phase.LOADING,
    WorkerState.READY: Phase.READY,
    WorkerState.QUARANTINED: Phase.FAILED,
    WorkerState.DRAINING: Phase.DRAINING,
    WorkerState.GONE: Phase.FAILED,
}


@dataclass(frozen=True, slots=True)
class Around:
    """What all pools share in one tick. `drains`: who was asked to drain, and when (ms)."""

    now_ms: int
    beats: Sequence[Heartbeat]
    drains: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Learned:
    """What is remembered of a pool from tick to tick. `tokens_per_s` is what one of its workers makes, in cost."""

    tokens_per_s: float = 0.0
    prompt_share: float | None = None  # of the cost of requests lately
    share_at_ms: int = 0


async def look_around(store: ScaleStore, fleet: Fleet) -> Around:
    """Once a tick."""
    return Around(await store.now_ms(), await fleet.workers(), await fleet.drains())


async def observe(
    demand: Demand,
    store: ScaleStore,
    around: Around,
    orders: PoolOrders,
    reports: Mapping[str, LaunchReport],
    learned: Learned,
    *,
    unplaceable: str = "",
    wants_ttft: bool = False,
) -> Seen:
    """One pool. `orders` are what it was told last, `reports` what the hands know. Raises what Redis raises."""
    stats = await demand.stats(orders.model)
    waiting, waiting_tokens = await demand.backlog(orders.model)
    workers = seen_workers(orders, around, reports)
    speeds = [(b.weight, b.prefill_weight) for b in around.beats if _works(b, orders.model)]
    if speeds:
        if around.now_ms - learned.share_at_ms >= _SHARE_EVERY_MS:
            learned.prompt_share, learned.share_at_ms = await demand.prompt_share(orders.model), around.now_ms
        learned.tokens_per_s = sum(work_tokens_per_s(w, prefill, learned.prompt_share) for w, prefill in speeds) / len(speeds)
    return Seen(
        at_s=around.now_ms / 1000,
        waiting=waiting,
        waiting_tokens=waiting_tokens,
        oldest_wait_s=stats.oldest_wait_ms / 1000,
        running=stats.running,
        workers=workers,
        tokens_per_s_each=learned.tokens_per_s,
        ttft_p95_s=_ttft_p95_s(await demand.first_outputs(orders.model, within_ms=_TTFT_WITHIN_MS)) if wants_ttft else None,
        cold_start_s=cold_start_s(await store.starts(orders.pool)),
        queue_paused=stats.paused,
        unplaceable=unplaceable,
    )


def seen_workers(orders: PoolOrders, around: Around, reports: Mapping[str, LaunchReport]) -> tuple[SeenWorker, ...]:
    """The workers of a pool: those ordered, with what their heartbeats and the hands say; and others of its model. Pure."""
    ordered = {launch.id for launch in orders.launches}
    newest: dict[str, Heartbeat] = {}
    for beat in around.beats:
        if beat.launch in ordered and (beat.launch not in newest or _is_newer(beat, newest[beat.launch])):
            newest[beat.launch] = beat
    found = [
        _seen(launch, newest.get(launch.id), reports.get(launch.id), launch.id in orders.retiring, around.now_ms)
        for launch in orders.launches
    ]
    others = [_foreign(beat, around) for beat in around.beats if beat.model == orders.model and beat.launch not in ordered]
    return tuple(found + [worker for worker in others if worker is not None])


def _works(beat: Heartbeat, model: str) -> bool:
    return beat.model == model and beat.state is WorkerState.READY and beat.weight > 0


def cold_start_s(starts_ms: Sequence[int]) -> tuple[float, float] | None:
    """Median and p90 of cold starts; None where there was none."""
    if not starts_ms:
        return None
    ordered = sorted(starts_ms)
    return _at(ordered, 0.5) / 1000, _at(ordered, _P90) / 1000


def _seen(launch: Launch, beat: Heartbeat | None, report: LaunchReport | None, retiring: bool, now_ms: int) -> SeenWorker:
    age_s = max(0, now_ms - launch.ordered_at_ms) / 1000 if launch.ordered_at_ms else 0.0
    error = (beat.error if beat else "") or (report.error if report else "")
    if report is not None and report.state in (LaunchState.CRASH_LOOP, LaunchState.REFUSED):
        return SeenWorker(launch.id, Phase.FAILED, age_s, error=error)
    if beat is None:
        return SeenWorker(launch.id, Phase.DRAINING if retiring else Phase.STARTING, age_s, error=error)
    phase = _PHASES[beat.state]
    if retiring and phase is not Phase.FAILED:
        phase = Phase.DRAINING
    elif phase is Phase.DRAINING and not retiring:
        phase = Phase.READY  # it was asked to, and is needed again: it hears of that with its next beat
    return _with_load(launch.id, phase, age_s, beat, error)


def _foreign(beat: Heartbeat, around: Around) -> SeenWorker | None:
    """A worker that this pool did not start; None for one that takes nothing or is another order's leftover."""
    if beat.state not in (WorkerState.STARTING, WorkerState.LOADING, WorkerState.READY) or beat.id in around.drains:
        return None
    if beat.launch and beat.launch in around.drains:
        return None
    return _with_load("", _PHASES[beat.state], max(0, around.now_ms - beat.started_at_ms) / 1000, beat, beat.error)


def _with_load(launch: str, phase: Phase, age_s: float, beat: Heartbeat, error: str) -> SeenWorker:
    gpu = beat.gpu
    return SeenWorker(
        launch=launch,
        phase=phase,
        age_s=age_s,
        held=beat.held,
        left_tokens=beat.held_tokens,
        tokens_per_s=beat.weight,
        utilisation=gpu.utilisation if gpu else None,
        memory_used=1 - gpu.free_bytes / gpu.total_bytes if gpu and gpu.total_bytes else None,
        error=error,
    )


def _is_newer(beat: Heartbeat, than: Heartbeat) -> bool:
    """Of two incarnations: the one that says of itself that it lives, else the one that beat last."""
    if (beat.state is WorkerState.GONE) != (than.state is WorkerState.GONE):
        return than.state is WorkerState.GONE
    return beat.beat_at_ms > than.beat_at_ms


def _ttft_p95_s(waits_ms: Iterable[int]) -> float | None:
    ordered = sorted(waits_ms)
    return _at(ordered, _P95) / 1000 if ordered else None


def _at(ordered: Sequence[int], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
