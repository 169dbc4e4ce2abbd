"""Lines longer than the window: its first 32 are chosen from exactly, and nothing behind them that fits is left waiting."""

import random

import pytest
from redis.asyncio import Redis

from dispatch import messages as m
from dispatch.queue import Queue
from dispatch.rules import QueueRules
from dispatch.states import Priority
from tests.dispatch.invariants import broken, line_order, snapshot
from tests.dispatch.twin import MODEL, Twin

WINDOW = 32
OTHER = "org/other:7b"


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_window_is_exact_and_nothing_behind_it_is_left(redis: Redis, seed: int) -> None:
    rng = random.Random(seed)
    rules = QueueRules()
    queue = Queue(redis, rules)
    twin = Twin(redis, rules)  # only to make requests
    costs: dict[str, int] = {}
    for _ in range(90):
        new = twin.new(rng.choice((5, 20, 80, 300, 900)), priority=rng.choice(list(Priority)))
        costs[new.id] = new.cost_tokens
        await queue.enqueue(new)
    for n in range(25):
        before = await snapshot(redis)
        names = [f"{MODEL}:{priority}" for priority in Priority]
        room = limit = rng.choice((30, 150, 700))
        # Oldest first as far as it fits, line by line; behind a window that was looked through, the script may choose.
        greedy = []
        for name in names:
            line = [f["id"] for _, f in before.of["queue"].get(name, [])]
            for request in line[:WINDOW]:
                if costs[request] <= room:
                    greedy.append(request)
                    room -= costs[request]
            if len(line) > WINDOW:
                break
        parked = await queue.park(m.Offer(f"w-{n}", MODEL, limit, 1_000, 1.0))
        after = await snapshot(redis)
        assert not broken(after, rules)
        taken = set(line_order(before, MODEL)) - set(line_order(after, MODEL))
        assert set(greedy) <= taken
        assert sum(costs[request] for request in taken) == limit - parked.room_tokens


@pytest.mark.parametrize("is_resumed", [False, True])
async def test_behind_many_that_wait_for_a_closed_worker_the_others_are_met(redis: Redis, is_resumed: bool) -> None:
    rules = QueueRules()
    queue, twin = Queue(redis, rules), Twin(redis, rules)
    await queue.park(m.Offer("fast", MODEL, 100, 8, 1_000.0, prefill_weight=4_000.0))
    await queue.enqueue(twin.new(40, prompt_tokens=90_000))
    full = twin.new(60, strategy="least_connections")
    if is_resumed:
        await queue.pause(MODEL, True)
    else:
        await queue.enqueue(full)
    for _ in range(3 * WINDOW):
        await queue.enqueue(twin.new(1, prompt_tokens=1))
    last = twin.new(1, strategy="least_connections")
    await queue.enqueue(last)
    await (queue.pause(MODEL, False) if is_resumed else queue.cancel(full.id))
    record = await queue.record(last.id)
    assert record is not None and record.worker == "fast", "it has room, though all before it wait for it to open"
    await queue.park(m.Offer("slow", MODEL, 100, 8, 1.0))
    await queue.pause(MODEL, True)
    await queue.pause(MODEL, False)
    after = await snapshot(redis)
    assert not broken(after, rules)
    assert len(line_order(after, MODEL)) == 3 * WINDOW, "all others wait for the better, though one is open"


async def test_behind_many_that_wait_for_the_better_an_open_worker_finds_the_others(redis: Redis) -> None:
    rules = QueueRules()
    queue, twin = Queue(redis, rules), Twin(redis, rules)
    await queue.park(m.Offer("fast", MODEL, 100, 8, 1_000.0, prefill_weight=4_000.0))
    await queue.enqueue(twin.new(40, prompt_tokens=90_000))
    await queue.park(m.Offer("slow", MODEL, 100, 8, 1.0, prefill_weight=4.0))
    full = twin.new(95, strategy="round_robin")
    await queue.enqueue(full)
    for _ in range(WINDOW + 1):
        await queue.enqueue(twin.new(1, prompt_tokens=1))
    last = twin.new(90, strategy="round_robin")
    await queue.enqueue(last)
    await queue.cancel(full.id)
    record = await queue.record(last.id)
    assert record is not None and record.worker == "slow", "it does not wait with those before it"
    after = await snapshot(redis)
    assert not broken(after, rules)
    assert len(line_order(after, MODEL)) == WINDOW + 1


async def test_models_share_a_shard_and_nothing_else(redis: Redis) -> None:
    queue = Queue(redis, QueueRules())
    for model in (MODEL, OTHER):
        await queue.park(m.Offer(f"w-{model}", model, 100, 4, 1.0))
    await queue.pause(OTHER, True)
    for model in (MODEL, OTHER):
        wanted = m.InferenceRequest(m.new_id(), model, m.InputKind.CHAT, m.Sampling(10))
        given = await queue.enqueue(m.NewRequest(wanted.id, model, m.encode(wanted), wanted.kind, 10, 60_000))
        record = await queue.record(given.id)
        assert record is not None
        assert (record.state, record.worker) == (("granted", "w-demo") if model == MODEL else ("queued", ""))
    assert not broken(await snapshot(redis), QueueRules())
    assert [(await queue.stats(model)).backlog for model in (MODEL, OTHER)] == [0, 1]
