"""What it runs on: GPUs by name, and what they can do together. Never here: what a step costs (worker/engines/sim_gpus.py)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dispatch.pricing import cost_tokens
from penstock.failures import USAGE, Failure
from penstock.simulator.trace import Arrival
from worker.engines.sim_gpus import PAGE_TOKENS, SIM_GPUS, SimGpu

_MOST_WORKERS = 10_000
_HINT = f"A fleet is a list like H200,A100*2,A10*3; there are {', '.join(SIM_GPUS)}"


@dataclass(frozen=True, slots=True)
class Member:
    """One worker of the fleet."""

    name: str
    gpu: SimGpu


def fleet_of(text: str) -> tuple[Member, ...]:
    """`H200,A100*2`: three workers, named after their GPU and its number."""
    counts: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z0-9]+)\s*(?:\*\s*(\d+))?\s*", part)
        if not match:
            raise Failure(f"no fleet: {text!r}", f"{part.strip()!r} is no GPU", _HINT, USAGE)
        gpu, count = match[1].upper(), int(match[2] or 1)
        if gpu not in SIM_GPUS:
            raise Failure(f"no fleet: {text!r}", f"{match[1]!r} is no GPU of the sim engine", _HINT, USAGE)
        if not count:
            raise Failure(f"no fleet: {text!r}", f"{part.strip()!r} is no worker", _HINT, USAGE)
        counts[gpu] = counts.get(gpu, 0) + count
    total = sum(counts.values())
    if total > _MOST_WORKERS:
        raise Failure(f"no fleet: {text!r}", f"{total} workers are more than {_MOST_WORKERS}", _HINT, USAGE)
    return tuple(
        Member(f"{gpu}-{n + 1:0{len(str(count))}d}", SIM_GPUS[gpu]) for gpu, count in counts.items() for n in range(count)
    )


def cost_of(arrival: Arrival) -> int:
    """KV tokens it will hold at most: its answer's length is taken as the client's max_tokens."""
    return cost_tokens(arrival.prompt_tokens, arrival.answer_tokens, PAGE_TOKENS)


def capacity_requests_per_s(fleet: Sequence[Member], trace: Sequence[Arrival]) -> float:
    """What the fleet could serve of this trace with every GPU's memory full of requests, for ever: load 1."""
    prompt_tokens = sum(a.prompt_tokens for a in trace) / len(trace)
    answer_tokens = sum(a.answer_tokens for a in trace) / len(trace)
    cost = sum(cost_of(a) for a in trace) / len(trace)
    return sum(_requests_per_s(member.gpu, prompt_tokens, answer_tokens, cost) for member in fleet)


def _requests_per_s(gpu: SimGpu, prompt_tokens: float, answer_tokens: float, cost: float) -> float:
    together = max(1.0, min(gpu.slots, gpu.kv_tokens / cost))
    return 1.0 / (prompt_tokens / gpu.prefill_tokens_per_s + answer_tokens * (gpu.step_s / together + gpu.per_sequence_s))
