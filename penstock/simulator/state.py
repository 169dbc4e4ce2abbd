"""What a run is given, what it keeps of each worker, and what comes of it: values only. Never here: what happens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from dispatch.scores import Load
from penstock.simulator.batching import Batch, Job
from penstock.simulator.fleet import Member
from worker.engines.sim_gpus import KV_BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Trouble:
    """A worker dies (and is back, empty, after `span_s`) or is frozen (for `span_s`). `worker` "": one drawn by lot."""

    kind: str  # kill or freeze
    at_s: float
    span_s: float
    worker: str = ""
    every: bool = False  # again each `at_s`, while requests are under way


@dataclass(frozen=True, slots=True)
class Conditions:
    """All but the trace, the fleet and the strategy."""

    wake_s: float = 0.0003  # from a grant to its begin
    heartbeat_s: float = 1.0
    seed: int = 7
    troubles: tuple[Trouble, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of each request, and of the run."""

    jobs: Sequence[Job]
    granted: Sequence[int]  # to each worker
    moved: int  # grants and leases taken back
    most_held: Sequence[float]  # of each worker's KV budget, at most
    ended_at_s: float


class Event(IntEnum):
    """What can happen at a moment."""

    BEGIN = 0  # a grant reaches its worker
    STEP = 1  # the steps under way on a GPU end
    BEAT = 2  # a heartbeat
    WAKE = 3  # greedy: someone looks at the line
    TROUBLE = 4  # a worker dies or is frozen
    THAW = 5
    BACK = 6  # a dead worker is there again
    UNBEGUN = 7  # a grant was not begun in time
    UNSEEN = 8  # a worker was silent for so long that it is passed over
    LAPSE = 9  # the leases of a silent worker are over
    TICK = 10  # the autoscaler looks
    STARTED = 11  # a worker that was ordered is there


@dataclass(slots=True)
class Worker:
    """A worker as it is, beside `load`: as Redis knows it."""

    member: Member
    load: Load
    batch: Batch
    plan: float = math.inf  # when its next STEP is due
    incarnation: int = 0
    spell: int = 0  # how often it died or froze
    alive: bool = True
    frozen_until_s: float = 0.0
    beat_at_s: float = 0.0
    busy_s: float = 0.0  # at the last heartbeat
    parked: bool = True
    granted: int = 0
    most_used: int = 0
    inbox: dict[int, Job] = field(default_factory=dict)  # granted, not begun
    begun: dict[int, Job] = field(default_factory=dict)
    stalled: list[tuple[int, int]] = field(default_factory=list)  # grants that came while it was frozen

    def silent(self, now: float) -> bool:
        """Dead or frozen."""
        return not self.alive or self.frozen_until_s > now


def load_of(member: Member) -> Load:
    """A worker that holds nothing."""
    gpu = member.gpu
    return Load(member.name, gpu.kv_tokens, 0, 0, gpu.slots, gpu.tokens_per_s, gpu.prefill_tokens_per_s)


def memory_of(w: Worker, now: float) -> float:
    """Share of the GPU's memory in use: the model's weights and the KV of what runs."""
    gpu = w.member.gpu
    weights_bytes = gpu.memory_bytes - gpu.kv_tokens * KV_BYTES_PER_TOKEN
    return (weights_bytes + w.batch.held_tokens(now) * KV_BYTES_PER_TOKEN) / gpu.memory_bytes
