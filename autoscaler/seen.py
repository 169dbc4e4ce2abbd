"""What one tick sees of one pool: frozen values, given to `decide`. Pure.

Never here: how it is found out (observe.py), what follows from it (policy.py).
"""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a worker of the pool is in its life, as the autoscaler sees it."""

    STARTING = "starting"  # ordered; no heartbeat yet, or one that says starting
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"  # it crashed too often, cannot be placed, or is in quarantine: no capacity


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """One worker. `launch` is "" for one that nobody here started: it is capacity, and never a victim.

    `left_tokens`: what it still has to make for those it holds, at most. `tokens_per_s`: its weight. Shares are 0..1.
    """

    launch: str
    phase: Phase
    age_s: float  # since it was ordered
    held: int = 0
    left_tokens: int = 0
    tokens_per_s: float = 0.0
    utilisation: float | None = None
    memory_used: float | None = None
    error: str = ""
    drained: bool = False  # it drains and holds nothing, by its own word; or nothing more will come of it


@dataclass(frozen=True, slots=True)
class Seen:
    """One pool at one moment. `at_s` is Redis's clock.

    `waiting_tokens`: the cost of the backlog. `tokens_per_s_each`: what one worker of this pool makes, measured or else seeded;
    0: not known. `cold_start_s`: learned (median, p90) from order to ready; None: none seen yet. `unplaceable`: why the hands
    could not place one more now; "" if they could. `blind`: why this tick could not observe; then nothing else counts.
    """

    at_s: float
    waiting: int = 0
    waiting_tokens: int = 0
    oldest_wait_s: float = 0.0
    running: int = 0
    workers: tuple[SeenWorker, ...] = ()
    tokens_per_s_each: float = 0.0
    ttft_p95_s: float | None = None
    cold_start_s: tuple[float, float] | None = None
    queue_paused: bool = False
    unplaceable: str = ""
    blind: str = ""

    def count(self, *phases: Phase) -> int:
        """How many workers are in one of these phases."""
        return sum(1 for worker in self.workers if worker.phase in phases)
