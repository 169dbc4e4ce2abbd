"""How much a worker is willing to hold. Pure.

Redis derives room = limit - cost of what it granted there; so whatever Redis cannot see must come off the limit here.
Memory truth (NVML, the engine's free KV) and measured weights come in here. Never here: I/O.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dispatch.messages import Offer
from worker.engines.base import EngineInfo


@dataclass(frozen=True, slots=True)
class Holding:
    """What one held request costs: as it was granted, and as the engine counts it."""

    granted_tokens: int
    needed_tokens: int


def needed(holding: Sequence[Holding]) -> int:
    """KV tokens that what is held may come to need."""
    return sum(max(h.granted_tokens, h.needed_tokens) for h in holding)


def offer(info: EngineInfo, worker: str, holding: Sequence[Holding], *, accepting: bool) -> Offer:
    """The pull to park. A request that needs more than it was granted takes the difference off the limit."""
    unseen = needed(holding) - sum(h.granted_tokens for h in holding)
    return Offer(
        worker=worker,
        model=info.card.name,
        limit_tokens=max(0, info.limit_tokens - unseen),
        slots=info.slots,
        weight=info.weight,
        accepting=accepting,
    )


def fits(info: EngineInfo, holding: Sequence[Holding], request: Holding) -> bool:
    """Whether the engine can hold one more beside these: the worker's own check of what it was granted."""
    return len(holding) < info.slots and needed([*holding, request]) <= info.limit_tokens
