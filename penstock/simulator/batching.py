"""How one worker works: continuous batching step by step, as the sim engine steps. Pure.

A step prefills up to 2,048 tokens, first come first served, and says one token for each sequence that is past its prompt.
Steps that are alike are taken together. Never here: who is granted what, and why.
"""

import heapq
import math

from penstock.simulator.trace import Arrival
from worker.engines.sim_gpus import PAGE_TOKENS, SimGpu

PREFILL_CHUNK_TOKENS = 2_048


class Job:
    """A request on its way: what of it is done, and when."""

    __slots__ = (
        "arrival",
        "attempt",
        "cost",
        "ended_at",
        "first_at",
        "incarnation",
        "index",
        "last_step",
        "prefill_left",
        "prefilling",
        "queued_at",
        "said",
        "worker",
    )

    def __init__(self, index: int, arrival: Arrival, cost: int) -> None:
        self.index = index
        self.arrival = arrival
        self.cost = cost
        self.attempt = 0
        self.worker = -1  # who holds it, or held it last: its place in the fleet,
        self.incarnation = 0  # and which life of it
        self.prefilling = True  # this attempt has said nothing yet
        self.said = 0  # tokens of earlier attempts
        self.prefill_left = arrival.prompt_tokens
        self.last_step = 0  # the batch's step that says its last token
        self.queued_at = 0.0  # since when it waits in line
        self.first_at = math.nan
        self.ended_at = math.nan

    @property
    def left(self) -> int:
        return self.arrival.answer_tokens - self.said


class Batch:
    """The sequences open on one GPU. `ends_at` is when the steps under way end; infinity if there are none."""

    __slots__ = (
        "_decoding",
        "_joining",
        "_prefilling",
        "_started_at",
        "_step_s",
        "_steps",
        "_taken",
        "busy_s",
        "ends_at",
        "gpu",
        "steps",
    )

    def __init__(self, gpu: SimGpu) -> None:
        self.gpu = gpu
        self.steps = 0
        self.busy_s = 0.0
        self.ends_at = math.inf
        self._joining: list[Job] = []
        self._prefilling: list[Job] = []
        self._decoding: list[tuple[int, int, Job]] = []
        self._started_at = 0.0
        self._steps = 0
        self._step_s = 0.0
        self._taken: list[int] = []

    def __len__(self) -> int:
        return len(self._joining) + len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        """Those of which nothing has been prefilled."""
        fresh = sum(1 for job in self._prefilling if job.prefill_left == job.arrival.prompt_tokens + job.said)
        return len(self._joining) + fresh

    def busy_until(self, now: float) -> float:
        """Seconds in which it made steps, since it began."""
        return self.busy_s + (now - self._started_at if self.ends_at != math.inf else 0.0)

    def held_tokens(self, now: float) -> int:
        """KV tokens in use, in whole pages."""
        steps = self.steps + self._done_by(now)
        total = 0
        for job in self._prefilling:
            total += -(-(job.arrival.prompt_tokens + job.said - job.prefill_left) // PAGE_TOKENS)
        for last_step, _, job in self._decoding:
            said = job.arrival.answer_tokens - (last_step - steps)
            total += -(-(job.arrival.prompt_tokens + said) // PAGE_TOKENS)
        return total * PAGE_TOKENS

    def add(self, job: Job, now: float) -> None:
        """It joins with the next step."""
        self._joining.append(job)
        if self.ends_at == math.inf:
            self._start(now)
        elif self._steps > 1:
            self._cut(now)

    def end(self) -> tuple[list[Job], list[Job]]:
        """The steps under way are over: who said a first token, who said its last. The next ones start."""
        now = self.ends_at
        self.steps += self._steps
        self.busy_s += now - self._started_at
        first: list[Job] = []
        if self._taken:
            for job, take in zip(self._prefilling, self._taken, strict=False):
                job.prefill_left -= take
            while self._prefilling and not self._prefilling[0].prefill_left:
                job = self._prefilling.pop(0)
                job.last_step = self.steps + job.left - 1
                heapq.heappush(self._decoding, (job.last_step, job.index, job))
                first.append(job)
        ended: list[Job] = []
        while self._decoding and self._decoding[0][0] <= self.steps:
            ended.append(heapq.heappop(self._decoding)[2])
        self._start(now)
        return first, ended

    def freeze(self, now: float, span_s: float) -> None:
        """No step makes progress for so long."""
        if self.ends_at == math.inf:
            return
        done = self._done_by(now)
        self.steps += done
        self._started_at += done * self._step_s
        self._steps = 1
        self.ends_at = self._started_at + self._step_s + span_s

    def abandon(self, now: float) -> list[Job]:
        """All is taken away: what was said is kept, the rest is lost."""
        steps = self.steps + self._done_by(now)
        for last_step, _, job in self._decoding:
            job.said = job.arrival.answer_tokens - max(1, last_step - steps)
        lost = [*self._joining, *self._prefilling, *(job for _, _, job in self._decoding)]
        for job in lost:
            job.prefill_left = job.arrival.prompt_tokens + job.said
        self._joining, self._prefilling, self._decoding = [], [], []
        self._start(now)
        return lost

    def _start(self, now: float) -> None:
        self._prefilling += self._joining
        self._joining.clear()
        self._started_at = now
        self._taken = []
        if self._prefilling:
            self._start_prefill(now)
        elif self._decoding:
            self._steps = self._decoding[0][0] - self.steps
            self._step_s = self.gpu.step_s + self.gpu.per_sequence_s * len(self._decoding)
            self.ends_at = now + self._steps * self._step_s
        else:
            self._steps = 0
            self.ends_at = math.inf

    def _start_prefill(self, now: float) -> None:
        budget, past = PREFILL_CHUNK_TOKENS, 0
        for job in self._prefilling:
            take = min(job.prefill_left, budget)
            if not take:
                break
            self._taken.append(take)
            budget -= take
            past += take == job.prefill_left
        prefilled = PREFILL_CHUNK_TOKENS - budget
        self._steps = 1
        self._step_s = (
            self.gpu.step_s + self.gpu.per_sequence_s * (len(self._decoding) + past) + prefilled / self.gpu.prefill_tokens_per_s
        )
        self.ends_at = now + self._step_s

    def _done_by(self, now: float) -> int:
        """Whole steps done of those under way."""
        if self._steps <= 1 or self._step_s <= 0:
            return 0
        return min(self._steps, math.floor((now - self._started_at) / self._step_s))

    def _cut(self, now: float) -> None:
        """Of like steps under way only the one that runs now is finished."""
        if self._steps > 1:
            self._steps = min(self._steps, max(1, math.ceil((now - self._started_at) / self._step_s)))
            self.ends_at = self._started_at + self._steps * self._step_s
