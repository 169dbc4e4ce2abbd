"""Cards of models: what the gateway may promise of a model while its workers come and go."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from dispatch import keys
from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.reports import Heartbeat, ModelCard
from dispatch.states import WorkerState

CARD = ModelCard("demo", "sim", context_tokens=4096, kv_bytes_per_token=0, max_cost_tokens=1000)


async def stand(fleet: Fleet, worker: str, model: str = "demo") -> None:
    beat = Heartbeat(worker, "host", 1, model, "sim", WorkerState.LOADING, 0, 1, 1.0, 0, 0, 0, 0)
    await fleet.beat(beat, 60_000)


async def largest(fleet: Fleet) -> int:
    card = await fleet.card("demo")
    assert card is not None
    return card.max_cost_tokens


async def test_a_small_worker_beside_a_big_one_takes_nothing_back(fleet: Fleet) -> None:
    await stand(fleet, "w-big")
    await fleet.put_card(replace(CARD, max_cost_tokens=9000), None, publisher="w-big")
    await stand(fleet, "w-small")
    await fleet.put_card(CARD, None, publisher="w-small")
    assert await largest(fleet) == 9000


async def test_the_first_to_stand_says_anew_what_can_be_held(fleet: Fleet) -> None:
    await fleet.put_card(replace(CARD, max_cost_tokens=9000), None, publisher="w-gone")
    await stand(fleet, "w-new")
    await fleet.put_card(CARD, None, publisher="w-new")
    assert await largest(fleet) == 1000


async def test_another_engine_says_anew_what_can_be_held(fleet: Fleet) -> None:
    await stand(fleet, "w-1")
    await fleet.put_card(replace(CARD, max_cost_tokens=9000), None, publisher="w-1")
    await fleet.put_card(replace(CARD, engine="transformers"), None, publisher="w-2")
    assert await largest(fleet) == 1000


async def test_workers_that_start_together_do_not_undo_each_other(fleet: Fleet) -> None:
    for n in range(8):
        await stand(fleet, f"w-{n}")
    cards = [(f"w-{n}", replace(CARD, max_cost_tokens=1000 * (n + 1))) for n in range(8)]
    await asyncio.gather(*(fleet.put_card(card, None, publisher=worker) for worker, card in cards))
    assert await largest(fleet) == 8000


async def test_a_card_that_is_none_of_ours_is_named(fleet: Fleet, redis: Redis) -> None:
    await redis.set(keys.model_card("demo"), b"junk", ex=60)
    await stand(fleet, "w-1")
    with pytest.raises(PenstockError, match=r"model:demo"):
        await fleet.put_card(CARD, None, publisher="w-2")
