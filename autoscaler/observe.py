"""What a tick looks at: the line, the heartbeats, what the hands report, what was learned of starts. Nothing is changed here.

Never here: what follows from it (policy.py), who carries it out (reconcile.py).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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

WEIGHT_BATCH = 32
"""So many sequences a weight (tokens/s) is for."""
_SILENT_S = 20.0
"""A worker whose process runs may be silent for so long, and counts as before. Only ticks that reached Redis count."""

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
    known: dict[str, "_Known"] = field(default_factory=dict)  # launches


@dataclass(slots=True)
class _Known:
    """What this process has seen of a launch. `silent_since_ms`: the first tick without its heartbeat."""

    since_ms: int
    last: SeenWorker | None = None
    silent_since_ms: int = 0


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
    others: Collection[str] = (),
) -> Seen:
    """One pool. `orders` are what it was told last, `reports` what the hands know, `others` the launches of pools beside it.

    Raises what Redis raises.
    """
    stats = await demand.stats(orders.model)
    waiting, waiting_tokens = await demand.backlog(orders.model)
    workers = seen_workers(orders, around, reports, learned.known, others)
    speeds = [(_decode_tokens_per_s(b), b.prefill_weight) for b in around.beats if _works(b, orders.model)]
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


def seen_workers(
    orders: PoolOrders,
    around: Around,
    reports: Mapping[str, LaunchReport],
    known: dict[str, _Known],
    others: Collection[str] = (),
) -> tuple[SeenWorker, ...]:
    """The workers of a pool: those ordered, with what their heartbeats and the hands say; and those nobody here ordered.

    `known` is carried from tick to tick, and changed.
    """
    ordered = {launch.id for launch in orders.launches}
    newest: dict[str, Heartbeat] = {}
    for beat in around.beats:
        if beat.launch in ordered and (beat.launch not in newest or _is_newer(beat, newest[beat.launch])):
            newest[beat.launch] = beat
    for gone in known.keys() - ordered:
        del known[gone]
    found = []
    for launch in orders.launches:
        memory = known.setdefault(launch.id, _Known(around.now_ms))
        heard, report = newest.get(launch.id), reports.get(launch.id)
        worker = _seen(launch, heard, report, launch.id in orders.retiring, around.now_ms, memory)
        if heard is not None:
            memory.last, memory.silent_since_ms = worker, 0
        found.append(worker)
    strangers = [b for b in around.beats if b.model == orders.model and b.launch not in ordered and b.launch not in others]
    foreign = [_foreign(beat, around) for beat in strangers]
    return tuple(found + [worker for worker in foreign if worker is not None])


def _decode_tokens_per_s(beat: Heartbeat) -> float:
    """A weight is for a batch of 32; decoding waits for memory, so a smaller batch makes that much less."""
    return beat.weight * min(1.0, beat.slots / WEIGHT_BATCH)


def _works(beat: Heartbeat, model: str) -> bool:
    return beat.model == model and beat.state is WorkerState.READY and beat.weight > 0


def cold_start_s(starts_ms: Sequence[int]) -> tuple[float, float] | None:
    """Median and p90 of cold starts; None where there was none."""
    if not starts_ms:
        return None
    ordered = sorted(starts_ms)
    return _at(ordered, 0.5) / 1000, _at(ordered, _P90) / 1000


def _seen(
    launch: Launch, beat: Heartbeat | None, report: LaunchReport | None, retiring: bool, now_ms: int, memory: _Known
) -> SeenWorker:
    age_s = _age_s(launch, report, now_ms, memory)
    error = (beat.error if beat else "") or (report.error if report else "")
    if report is not None and report.state in (LaunchState.CRASH_LOOP, LaunchState.REFUSED):
        return SeenWorker(launch.id, Phase.FAILED, age_s, error=error)
    if beat is None:
        return _silent(launch, report, retiring, now_ms, memory, age_s, error)
    phase = _PHASES[beat.state]
    if retiring and phase is not Phase.FAILED:
        phase = Phase.DRAINING
    elif phase is Phase.DRAINING and not retiring:
        phase = Phase.READY  # it was asked to, and is needed again: it hears of that with its next beat
    worker = _with_load(launch.id, phase, age_s, beat, error)
    # Its own word that it takes nothing more: until then a grant may be on its way to it.
    return replace(worker, drained=beat.state is WorkerState.DRAINING and not beat.held)


def _age_s(launch: Launch, report: LaunchReport | None, now_ms: int, memory: _Known) -> float:
    """How long its start has taken: a process that was started again, or that this process has only just come to know, has
    just begun."""
    if report is not None and report.state in (LaunchState.BACKOFF, LaunchState.STARTING):
        return 0.0
    began_ms = launch.ordered_at_ms or now_ms
    if report is not None and memory.last is None:
        began_ms = max(began_ms, report.since_ms, memory.since_ms)
    elif report is not None:
        began_ms = max(began_ms, report.since_ms)
    return max(0, now_ms - began_ms) / 1000


def _silent(
    launch: Launch, report: LaunchReport | None, retiring: bool, now_ms: int, memory: _Known, age_s: float, error: str
) -> SeenWorker:
    """No heartbeat stands. Redis may have been away, and with it every heartbeat: one whose process runs is what it was."""
    memory.silent_since_ms = memory.silent_since_ms or now_ms
    silent_s = (now_ms - memory.silent_since_ms) / 1000
    runs = report is not None and report.state is LaunchState.RUNNING
    if memory.last is None or not runs:
        if retiring:
            return SeenWorker(launch.id, Phase.DRAINING, age_s, error=error, drained=not runs or silent_s > _SILENT_S)
        return SeenWorker(launch.id, Phase.STARTING, age_s, error=error)
    if silent_s > _SILENT_S:
        phase = Phase.DRAINING if retiring else Phase.FAILED
        why = error or f"its process runs, and its heartbeat has been missing for {silent_s:.0f} s"
        return replace(memory.last, phase=phase, age_s=age_s, error=why, drained=retiring)
    return replace(memory.last, phase=Phase.DRAINING if retiring else memory.last.phase, age_s=age_s, drained=False)


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
