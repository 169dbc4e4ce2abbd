"""The GPUs the sim engine can be: what one step costs and how much they hold. Pure.

The numbers are those of an 8 B-parameter model in bf16 (16 GB of weights, 128 KiB of KV a token), reckoned from each
card's memory, bandwidth and dense bf16 throughput; they set proportions between cards, not a benchmark of any of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

KV_BYTES_PER_TOKEN = 131_072
PAGE_TOKENS = 16
_BUSY_SEQUENCES = 32


@dataclass(frozen=True, slots=True)
class SimGpu:
    """One card. A step takes `step_s`, `per_sequence_s` for each sequence that decodes, and its share of prefill."""

    name: str
    step_s: float
    per_sequence_s: float
    prefill_tokens_per_s: float
    kv_tokens: int
    memory_bytes: int
    slots: int = 256

    @property
    def tokens_per_s(self) -> float:
        """Decode speed with 32 sequences: the seed of a worker's weight."""
        return _BUSY_SEQUENCES / (self.step_s + _BUSY_SEQUENCES * self.per_sequence_s)


SIM_GPUS: Mapping[str, SimGpu] = {
    gpu.name: gpu
    for gpu in (
        SimGpu("H200", 0.0046, 0.000030, 30_000, 846_000, 141_000_000_000, slots=512),
        SimGpu("H100", 0.0060, 0.000040, 30_000, 427_000, 80_000_000_000),
        SimGpu("A100", 0.0094, 0.000066, 10_000, 427_000, 80_000_000_000),
        SimGpu("L40S", 0.0200, 0.000150, 9_000, 207_000, 48_000_000_000),
        SimGpu("A10", 0.0300, 0.000220, 3_000, 42_000, 24_000_000_000),
    )
}
