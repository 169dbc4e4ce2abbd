"""What a rule is told, and what it answers: frozen values. Pure.

Never here: how many workers that makes after bounds and windows (policy.py).
"""

from dataclasses import dataclass

from autoscaler.seen import Phase, Seen, SeenWorker
from dispatch.scaling import ScalingPolicy


@dataclass(frozen=True, slots=True)
class Floor:
    """At least so many workers at these times (UTC): `days` from 0 for Monday, () for every day; minutes of the day."""

    days: tuple[int, ...]
    from_minute: int
    to_minute: int
    least: int


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """How one pool is scaled. dispatch/settings_scale.PoolSettings says what each field means; 0 steps are unlimited."""

    min: int = 0
    max: int = 1
    initial: int = 0
    policies: tuple[ScalingPolicy, ...] = (ScalingPolicy.QUEUE_DELAY,)
    target_s: float = 5.0
    requests_per_worker: float = 8.0
    utilisation: float = 0.8
    ttft_s: float = 2.0
    up_window_s: float = 0.0
    down_window_s: float = 60.0
    step_up: int = 0
    step_down: int = 0
    idle_timeout_s: float = 300.0
    floors: tuple[Floor, ...] = ()
    paused: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """What a rule looks at. `ready` and `coming` (starting, loading) are the capacity, those of other launchers too.

    `coming_in_s`: what is left of the learned cold start of each of `coming`. `waiting*` and `oldest_wait_s` are 0 while the
    queue is paused. `since_up_s`: since the last time more workers were wanted.
    """

    seen: Seen
    ready: tuple[SeenWorker, ...]
    coming: tuple[SeenWorker, ...]
    coming_in_s: tuple[float, ...]
    cold_start_s: float
    waiting: int
    waiting_tokens: int
    oldest_wait_s: float
    tokens_per_s: float
    since_up_s: float

    @property
    def capacity(self) -> int:
        """Workers that are there or on their way."""
        return len(self.ready) + len(self.coming)


@dataclass(frozen=True, slots=True)
class Wish:
    """How many workers a rule asks for, and why, in numbers."""

    workers: float
    reason: str


def view_of(seen: Seen, late: frozenset[int], since_up_s: float) -> View:
    """Of what is seen; `late` are the places of workers whose start has failed."""
    ready = tuple(worker for worker in seen.workers if worker.phase is Phase.READY)
    coming = tuple(
        worker
        for place, worker in enumerate(seen.workers)
        if worker.phase in (Phase.STARTING, Phase.LOADING) and place not in late
    )
    cold_s = seen.cold_start_s[0] if seen.cold_start_s else 0.0
    speeds = [worker.tokens_per_s for worker in ready if worker.tokens_per_s > 0]
    return View(
        seen=seen,
        ready=ready,
        coming=coming,
        coming_in_s=tuple(max(0.0, cold_s - worker.age_s) for worker in coming),
        cold_start_s=cold_s,
        waiting=0 if seen.queue_paused else seen.waiting,
        waiting_tokens=0 if seen.queue_paused else seen.waiting_tokens,
        oldest_wait_s=0.0 if seen.queue_paused else seen.oldest_wait_s,
        tokens_per_s=seen.tokens_per_s_each or (sum(speeds) / len(speeds) if speeds else 0.0),
        since_up_s=since_up_s,
    )
