"""How much a worker is willing to hold. Pure.

Redis derives room = limit - cost of what it granted there; so whatever Redis cannot see must come off the limit here: what
outgrew its cost, what other processes took of the device. Never here: I/O, clocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dispatch.messages import Offer
from dispatch.pricing import PAGE_TOKENS, cost_tokens
from dispatch.reports import RoomStatus
from worker.engines.base import EngineInfo


@dataclass(frozen=True, slots=True)
class Holding:
    """What one held request costs in KV tokens: as it was granted, as it is expected to end, what it fills now, at the most."""

    granted_tokens: int
    needed_tokens: int
    used_tokens: int = 0
    most_tokens: int = 0

    @property
    def reach_tokens(self) -> int:
        """What it fills with one page more; nothing before it has begun."""
        return min(max(self.most_tokens, self.used_tokens), self.used_tokens + PAGE_TOKENS) if self.used_tokens else 0

    def counted(self, *, cautious: bool = False) -> int:
        """What must be kept for it."""
        expected = max(self.granted_tokens, self.needed_tokens, self.used_tokens)
        return max(expected, self.most_tokens) if cautious else expected


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The device's memory now, in bytes: free of it, to be left free, and promised to other workers that have not taken it.

    `squeezed`: others took so much that not even the headroom is left.
    """

    total_bytes: int
    free_bytes: int
    headroom_bytes: int = 0
    promised_bytes: int = 0
    squeezed: bool = False


@dataclass(frozen=True, slots=True)
class Speeds:
    """What a pull is weighed by: decoded tokens/s with 32 sequences, prompt tokens/s, and what reports go by."""

    weight: float
    prefill_weight: float
    utilisation: float = 0.0
    waiting: int = 0


def expected_tokens(granted: int, prompt: int, spoken: int, most: int) -> int:
    """What a request will need at its end. One that outgrew its cost is taken for half done."""
    used = cost_tokens(prompt, spoken)
    return granted if used <= granted else max(used, min(most, cost_tokens(prompt, 2 * spoken)))


def needed(holding: Sequence[Holding]) -> int:
    """KV tokens that what is held is expected to need."""
    return sum(h.counted() for h in holding)


def room(
    info: EngineInfo,
    holding: Sequence[Holding],
    memory: DeviceMemory | None = None,
    *,
    visible_tokens: int | None = None,
    cautious: bool = False,
) -> RoomStatus:
    """What fits now, and why. `visible_tokens`: what the engine says it holds; `cautious`: count all held at their most."""
    used = sum(h.used_tokens for h in holding)
    counted = sum(h.counted(cautious=cautious) for h in holding)
    capacity, headroom, bound_by = info.limit_tokens, 0, "overrun" if cautious else "engine"
    each = info.card.kv_bytes_per_token
    if memory is not None and info.pooled:
        # The pool stands whatever others take; but without memory for the steps themselves nothing more may come.
        if memory.squeezed and capacity > counted:
            capacity, bound_by = counted, "device"
    elif memory is not None and each:
        # Of two views of what it holds the smaller: what just ended may be gone from one, what just began not be in the other.
        seen = used if visible_tokens is None else min(used, visible_tokens)
        kept = memory.headroom_bytes + memory.promised_bytes
        held_back = -(-kept // each)
        there = seen + memory.free_bytes // each
        if there - held_back < capacity:
            capacity, headroom, bound_by = there, held_back, "device"
    return RoomStatus(
        capacity_tokens=capacity,
        headroom_tokens=headroom,
        promised_tokens=counted - used,
        used_tokens=used,
        room_tokens=capacity - headroom - counted,
        bound_by=bound_by,
        free_bytes=memory.free_bytes if memory else None,
        headroom_bytes=memory.headroom_bytes if memory else 0,
        promised_bytes=memory.promised_bytes if memory else 0,
    )


def offer(
    info: EngineInfo,
    worker: str,
    holding: Sequence[Holding],
    *,
    accepting: bool,
    found: RoomStatus | None = None,
    speeds: Speeds | None = None,
) -> Offer:
    """The pull to park. What Redis does not see of the room (`found`) comes off the limit or is added to it."""
    found = found or room(info, holding)
    speeds = speeds or Speeds(info.weight, info.prefill_weight)
    limit = found.room_tokens + sum(h.granted_tokens for h in holding)
    holds = max(1, found.capacity_tokens - found.headroom_tokens)
    return Offer(
        worker=worker,
        model=info.card.name,
        limit_tokens=max(0, min(limit, info.limit_tokens)),
        slots=info.slots,
        weight=speeds.weight,
        accepting=accepting,
        prefill_weight=speeds.prefill_weight,
        memory=min(1.0, found.used_tokens / holds),
        utilisation=min(1.0, max(0.0, speeds.utilisation)),
        waiting=speeds.waiting,
    )


def holds_at_once(info: EngineInfo, found: RoomStatus) -> int:
    """KV tokens that may be held together: a pool stands, whatever becomes of the device's other memory."""
    return info.limit_tokens if info.pooled else max(0, found.capacity_tokens - found.headroom_tokens)


def fits(holds_tokens: int, slots: int, holding: Sequence[Holding], request: Holding) -> bool:
    """Whether the engine can hold one more beside these: the worker's own check of what it was granted."""
    return len(holding) < slots and needed([*holding, request]) <= holds_tokens


def is_overrun(holds_tokens: int, holding: Sequence[Holding]) -> bool:
    """Whether the next page of each might not be there."""
    return sum(h.reach_tokens for h in holding) > holds_tokens
