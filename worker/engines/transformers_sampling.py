"""How tokens are chosen in a continuous batch, each request by its own temperature, top_k, top_p and seed.

The library samples a whole batch one way (`do_sample`) with one random state. Here the batch is always taken by argmax:
a greedy row is left as it is, a sampled row gets Gumbel noise first (argmax of logits/T + noise IS a sample of
softmax(logits/T)). The noise depends on (seed, position, token id) alone, so a seed gives the same answer whatever shares
the batch and wherever an earlier attempt stopped. Never here: scheduling, text.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor

from dispatch.messages import Sampling

_FILTERED = float("-inf")
_MIX_1, _MIX_2, _MIX_3 = -0x61C8864680B583EB, -0x00AE502812AA7333, -0x3B314601E57A13AD  # odd constants of murmur3 and splitmix


def arguments(sampling: Sampling, seed: int) -> dict[str, Any]:
    """A request's own arguments for the processors below."""
    return {
        "temperature": float(max(0.0, sampling.temperature)),
        "top_k": int(sampling.top_k),
        "top_p": float(sampling.top_p),
        "seed": int(seed),
    }


def install(manager: Any) -> None:
    """Give a manager that was not started yet these processors in place of its own."""
    config = manager.continuous_batching_config
    # A captured graph replays the same steps for every batch: then nothing may be left out.
    captured = any(config.cuda_graph_booleans) or config.varlen_compile_config is not None
    processors: list[_PerRequest] = [_Temperature(), _TopK(), _TopP(), _Noise()]
    for processor in processors:
        processor.always = captured
    target = manager.logit_processor
    target.logits_processor = LogitsProcessorList(processors)
    target.tensors_required = len(processors)
    target._retrieve_processors_kwargs()
    target.do_processing = True


class _PerRequest(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """One number for each request of the batch; left out of a step in which no request needs it."""

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012 (the library's own declaration)
    ignored_kwargs: tuple[str, ...] = ()
    always = True
    needed = True
    idle: float = 0
    kind = torch.float32

    def value(self, state: Any) -> float:
        """The request's number; `idle` when it does not need this processor."""
        raise NotImplementedError

    def apply(self, scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Process the rows of `scores`, each by its number."""
        raise NotImplementedError

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.copy_(torch.full_like(int32_tensor, self.idle, dtype=self.kind).view(torch.int32))

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> torch.Tensor:
        numbers = [self.value(request.state) for request in requests_with_new_token]
        self.needed = any(number != self.idle for number in numbers)
        return torch.tensor(numbers, dtype=self.kind).view(torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        if not (self.always or self.needed):
            return scores
        return self.apply(scores, tensor_arg[: scores.size(0)].view(self.kind).unsqueeze(-1))


class _Temperature(_PerRequest):
    supported_kwargs = {"temperature": float}  # noqa: RUF012
    idle = 1.0

    def value(self, state: Any) -> float:
        temperature: float = state.logit_processor_kwargs.get("temperature", 0.0)
        return temperature if temperature > 0 else self.idle

    def apply(self, scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return scores / numbers


class _TopK(_PerRequest):
    supported_kwargs = {"top_k": int}  # noqa: RUF012
    kind = torch.int32

    def value(self, state: Any) -> float:
        sampled = state.logit_processor_kwargs.get("temperature", 0.0) > 0
        return max(0, state.logit_processor_kwargs.get("top_k", 0)) if sampled else 0

    def apply(self, scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        size = scores.size(-1)
        kept = torch.where(numbers > 0, numbers.clamp(max=size), size).to(torch.int64)
        least = torch.sort(scores, dim=-1, descending=True)[0].gather(-1, kept - 1)
        return scores.masked_fill(scores < least, _FILTERED)


class _TopP(_PerRequest):
    supported_kwargs = {"top_p": float}  # noqa: RUF012
    idle = 1.0

    def value(self, state: Any) -> float:
        sampled = state.logit_processor_kwargs.get("temperature", 0.0) > 0
        return min(1.0, state.logit_processor_kwargs.get("top_p", 1.0)) if sampled else 1.0

    def apply(self, scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        ordered, order = torch.sort(scores, dim=-1, descending=True)
        odds = ordered.softmax(dim=-1)
        # A token goes when those before it already make up top_p; the first one never goes.
        gone = (odds.cumsum(dim=-1) - odds >= numbers) & (numbers < 1.0)
        gone[..., 0] = False
        return scores.masked_fill(gone.scatter(-1, order, gone), _FILTERED)


class _Noise(_PerRequest):
    supported_kwargs = {"seed": int}  # noqa: RUF012
    kind = torch.int32

    def value(self, state: Any) -> float:
        if state.logit_processor_kwargs.get("temperature", 0.0) <= 0:
            return 0
        # position_offset counts all tokens before the one to be chosen, however they were split into prompt and answer.
        seed: int = state.logit_processor_kwargs["seed"]
        digest = hashlib.blake2s(f"{seed}/{state.position_offset}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big", signed=True) or 1

    def apply(self, scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        ids = torch.arange(scores.size(-1), dtype=torch.int64, device=scores.device)
        mixed = numbers.to(torch.int64) * _MIX_1 + ids * _MIX_2
        mixed = (mixed ^ ((mixed >> 33) & 0x7FFFFFFF)) * _MIX_2
        mixed = (mixed ^ ((mixed >> 33) & 0x7FFFFFFF)) * _MIX_3
        mixed = mixed ^ ((mixed >> 33) & 0x7FFFFFFF)
        # 23 bits and a half: exact in float32 and never 0 or 1, whose logarithms would decide alone.
        uniform = (((mixed >> 41) & 0x7FFFFF).to(torch.float32) + 0.5) / 2**23
        noise = -torch.log(-torch.log(uniform))
        return torch.where(numbers == 0, scores, scores + noise)
