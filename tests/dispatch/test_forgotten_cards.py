"""A model's card that Redis forgot is published again by whoever published it."""

import time

from redis.asyncio import Redis

from dispatch.fleet import Fleet
from dispatch.reports import Heartbeat, ModelCard, TokenizerFiles
from dispatch.states import WorkerState


async def test_a_beat_publishes_again_what_redis_has_forgotten(fleet: Fleet, redis: Redis) -> None:
    """A server that comes back empty, so fast that no beat ever failed."""
    card = ModelCard("demo", "sim", 4096, 0, 1000)
    files = TokenizerFiles("{}")
    now = int(time.time() * 1000)
    beat = Heartbeat("w-1", "host", 1, "demo", "sim", WorkerState.READY, 1000, 4, 1.0, 0, 0, now, now)
    await fleet.beat(beat, 5000)
    assert await fleet.card("demo") is None
    published = await fleet.put_card(card, files)
    await redis.flushall()
    await fleet.beat(beat, 5000)
    assert await fleet.card("demo") == published
    assert await fleet.tokenizer(published.tokenizer) == files
    assert [c.name for c in await fleet.cards()] == ["demo"]


async def test_a_smaller_worker_that_is_faster_does_not_win(redis: Redis) -> None:
    small, big = Fleet(redis), Fleet(redis)
    now = int(time.time() * 1000)
    beats = [Heartbeat(f"w-{n}", "host", 1, "demo", "sim", WorkerState.READY, 1000, 4, 1.0, 0, 0, now, now) for n in (1, 2)]
    await small.put_card(ModelCard("demo", "sim", 4096, 0, 1000), None)
    await big.put_card(ModelCard("demo", "sim", 4096, 0, 9000), None)
    await redis.flushall()
    for _ in range(2):
        await small.beat(beats[0], 5000)
        await big.beat(beats[1], 5000)
    card = await small.card("demo")
    assert card is not None and card.max_cost_tokens == 9000
