"""What the gateway knows of a pool of workers at one moment, and what follows from it. Values; pure.

Never here: reading it (pools.py), documents (scaled.py), words (scaled_words.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dispatch.metrics_scale import ready
from dispatch.reports import Heartbeat
from dispatch.scaling import LaunchReport, LaunchState, Leadership, PoolOverride, PoolStatus
from dispatch.states import WorkerState

IN_TROUBLE = (LaunchState.CRASH_LOOP, LaunchState.REFUSED, LaunchState.BACKOFF)
"""Of workers that do not come up, the worst first."""

_NOBODY_COMES_MS = 30_000
"""A group without a leader for longer than this starts nothing: a change of leaders takes one lease."""


@dataclass(frozen=True, slots=True)
class Starting:
    """A worker that is on its way. `left_s`: by the learned cold start; None: none is known yet."""

    launch: str
    host: str
    state: str
    progress: str
    age_s: float
    left_s: float | None


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool: what its leader last said, what people set since, who leads, and the heartbeats of its workers."""

    status: PoolStatus
    override: PoolOverride | None
    leader: Leadership
    workers: Sequence[Heartbeat]
    now_ms: int

    @property
    def paused(self) -> bool:
        """Whether somebody told the autoscaler to leave it as it is."""
        return self.override is not None and self.override.paused

    @property
    def silent_ms(self) -> int:
        """How long ago it was last decided on."""
        return max(0, self.now_ms - self.status.decided.at_ms)

    def starting(self) -> list[Starting]:
        """Its workers that are on their way, the first to be ready first."""
        beats = {beat.launch or beat.id: beat for beat in self.workers}
        reports = {report.id: report for report in self.status.reports}
        found = []
        for launch in dict.fromkeys((*reports, *beats)):
            report, beat = reports.get(launch), beats.get(launch)
            if not _on_its_way(report, beat):
                continue
            moments = (report.since_ms if report else 0, beat.started_at_ms if beat else 0)
            age_s = max(0, self.now_ms - min((ms for ms in moments if ms), default=self.now_ms)) / 1000
            cold = self.status.cold_start_s
            found.append(
                Starting(
                    launch=launch,
                    host=(beat.host if beat else "") or (report.host if report else ""),
                    state=beat.state.value if beat else "starting",
                    progress=beat.progress if beat else "",
                    age_s=age_s,
                    left_s=None if cold is None else max(0.0, cold - age_s),
                )
            )
        return sorted(found, key=lambda s: (s.left_s is None, s.left_s or 0.0, s.launch))

    def troubled(self) -> list[LaunchReport]:
        """Its workers that do not come up, the worst first."""
        return sorted((r for r in self.status.reports if r.state in IN_TROUBLE), key=lambda r: (IN_TROUBLE.index(r.state), r.id))

    def could_start(self) -> bool:
        """Whether the autoscaler may ever start a worker of it: nobody forbids it and somebody decides."""
        most = self.status.decided.bounds[1]
        comes = self.leader.leads or self.silent_ms < _NOBODY_COMES_MS
        return most > 0 and not self.paused and not self.status.decided.dry_run and comes

    def has_more(self) -> bool:
        """Whether there may be another worker than those that are ready."""
        return self.could_start() and (bool(self.starting()) or ready(self.status) < self.status.decided.bounds[1])


def _on_its_way(report: LaunchReport | None, beat: Heartbeat | None) -> bool:
    if beat is not None:
        return beat.state in (WorkerState.STARTING, WorkerState.LOADING)
    return report is not None and report.state in (LaunchState.STARTING, LaunchState.RUNNING)
