"""A cost is what answers of the model usually need, once the fleet knows; the most it may need still decides what fits at all."""

from collections.abc import AsyncIterator

import pytest

from dispatch import messages as m
from dispatch.fleet import Fleet
from dispatch.lengths import Counts, Lengths
from dispatch.pricing import cost_tokens
from dispatch.queue import Queue
from dispatch.reports import ModelCard
from tests.gateway.helpers import MODEL, FakeWorker, Running, until, working

HELLO = {"model": MODEL, "prompt": "12345678", "max_tokens": 2_000}


async def price(gateway: Running, **more: object) -> int:
    answer = await gateway.client.post("/v1/requests", json={**HELLO, **more})
    assert answer.status_code in (200, 202), answer.text
    shown = await gateway.client.get(f"/v1/requests/{answer.json()['id']}")
    assert shown.status_code == 200
    return int(shown.json()["cost_tokens"])


async def learn(redis: object, answers: int, tokens: int) -> None:
    counts = Counts()
    for _ in range(answers):
        counts.reached(0, tokens)
        counts.ended(tokens)
    await Lengths(redis).add(MODEL, counts.take())  # type: ignore[arg-type]


class Mover(FakeWorker):
    """Of an engine whose overruns can be moved."""

    moves: bool = True

    async def publish(self) -> None:
        kinds = tuple(m.InputKind)
        await self.fleet.put_card(ModelCard(MODEL, "sim", 4096, 0, 50_000, kinds, moves_overruns=self.moves), None)


@pytest.fixture
async def mover(queue: Queue, fleet: Fleet) -> AsyncIterator[Mover]:
    async with working(Mover(queue, fleet)) as worker:
        yield worker  # type: ignore[misc]


async def test_the_price_falls_once_enough_is_known(gateway: Running, mover: Mover, redis: object) -> None:
    full, usual = cost_tokens(2, 2_000), cost_tokens(2, 107)  # 107: the step that 100 belongs to
    assert await price(gateway) == full
    await learn(redis, 49, 100)
    gateway.gateway.lengths._kept.clear()
    gateway.gateway.lengths.get(MODEL)
    await gateway.gateway.lengths.until_known(MODEL)
    assert await price(gateway) == full
    await learn(redis, 1, 100)
    gateway.gateway.lengths._kept.clear()

    async def is_cheaper() -> bool:
        return await price(gateway) == usual

    await until(is_cheaper)
    assert await price(gateway, max_tokens=30) == cost_tokens(2, 30)
    assert await price(gateway, ignore_eos=True) == full  # a load tool's answers do not end by themselves
    # What was asked for is still what it may get.
    assert {r.sampling.max_tokens for r in mover.seen} <= {30, 2_000}


async def test_what_an_engine_cannot_move_keeps_its_full_price(gateway: Running, worker: FakeWorker, redis: object) -> None:
    await learn(redis, 100, 100)
    gateway.gateway.lengths.get(MODEL)
    await gateway.gateway.lengths.until_known(MODEL)
    assert await price(gateway) == cost_tokens(2, 2_000)
