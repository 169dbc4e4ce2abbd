"""What was found to cost more than it was granted at gives back what it was granted at."""

import asyncio

import pytest
from redis.asyncio import Redis

from dispatch import messages as m
from dispatch.keys import ShardKeys
from dispatch.queue import Queue
from dispatch.rules import QueueRules
from dispatch.scripts import NAMES, compose

KEYS, RULES = ShardKeys("s0"), QueueRules()


async def room_after(redis: Redis, queue: Queue, ways_out: int) -> list[int]:
    """Two run at one worker, the first is repriced from 100 to 300. How much is used there: then, and after it has left."""
    await queue.park(m.Offer("w-1", "demo", 1_000, 8, 1.0))
    for _ in range(2):
        asked = m.InferenceRequest(m.new_id(), "demo", m.InputKind.COMPLETION, m.Sampling(1), prompt="w", cost_tokens=100)
        await queue.enqueue(m.NewRequest(asked.id, "demo", m.encode(asked), asked.kind, 100, deadline_ms=60_000))
    _, words = await queue.read_inbox("w-1", "0", block_ms=1_000)
    first, second = (word for word in words if isinstance(word, m.Grant))
    assert await queue.begin(first) and await queue.begin(second)
    assert await queue.reprice(first, 300) is m.WriteStatus.OK
    used = [await used_at(redis)]
    if ways_out == 1:
        await queue.finish(first, 1, b"{}", b"{}")
    elif ways_out == 2:  # in one call with another
        await _both(queue, first, second)
    else:
        await queue.park(m.Offer("w-1", "demo", 0, 8, 1.0))
        await queue.release(first)
    return [*used, await used_at(redis)]


async def _both(queue: Queue, first: m.Grant, second: m.Grant) -> None:
    await asyncio.gather(queue.finish(first, 1, b"{}", b"{}"), queue.finish(second, 1, b"{}", b"{}"))


async def used_at(redis: Redis) -> int:
    return int(await redis.hget(KEYS.worker("w-1"), "used"))  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(("way_out", "left"), [(1, 100), (2, 0), (3, 100)], ids=["finish", "shared call", "release"])
async def test_it_gives_back_what_it_was_granted_at(redis: Redis, way_out: int, left: int) -> None:
    assert await room_after(redis, Queue(redis, RULES), way_out) == [200, left]


async def test_that_it_would_give_back_its_new_price_is_seen(redis: Redis) -> None:
    edit = {"lib/leave.lua": ("r.repriced and tonumber(field_now(k_held(r.worker), r.id)) or r.cost", "r.cost")}
    scripts = {name: compose(name, RULES, edit=edit if name == "finish" else None) for name in NAMES}
    assert await room_after(redis, Queue(redis, RULES, scripts=scripts), 1) != [200, 100]
