"""What a request costs, counted the same by the gateway that admits it and the engine that holds it. Pure.

Never here: tokenizers. Where a model card has none (sim, upstream), prompt tokens are estimated from bytes by the rule here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dispatch.messages import InferenceRequest, InputKind

PAGE_TOKENS = 16
BYTES_PER_TOKEN = 4
"""English text runs at about four bytes a token with the usual tokenizers; other scripts take more bytes and more tokens."""


def estimate_prompt_tokens(kind: InputKind, messages: Sequence[Mapping[str, Any]], prompt: str, input: Any) -> int:
    """Prompt tokens of a request whose model card names no tokenizer: a quarter of its UTF-8 bytes, rounded up, at least 1."""
    if kind is InputKind.CHAT:
        size = sum(_bytes_of(m.get("role")) + _bytes_of(m.get("content")) for m in messages)
    elif kind is InputKind.COMPLETION:
        size = _bytes_of(prompt)
    else:
        size = _bytes_of(input)
    return max(1, -(-size // BYTES_PER_TOKEN))


def prompt_tokens(request: InferenceRequest) -> int:
    """Prompt tokens of a request: counted where it was tokenized, else estimated."""
    if request.prompt_token_ids:
        return len(request.prompt_token_ids)
    return estimate_prompt_tokens(request.kind, request.messages, request.prompt, request.input)


def cost_tokens(prompt_tokens: int, max_tokens: int, page_tokens: int = PAGE_TOKENS) -> int:
    """KV tokens a request needs at most, in whole pages."""
    pages = -(-(prompt_tokens + max_tokens) // page_tokens)
    return max(1, pages) * page_tokens


def learned_cost_tokens(prompt_tokens: int, max_tokens: int, usual_tokens: int | None) -> int:
    """KV tokens a request will hardly need more than: its answer is no longer than those of this model usually are."""
    return cost_tokens(prompt_tokens, max_tokens if usual_tokens is None else min(max_tokens, usual_tokens))


def _bytes_of(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    return len(msgspec.json.encode(value))
