"""What must not pile up or begin anew while workers live on, and what scripts of an older release leave behind."""

from redis.asyncio import Redis

from dispatch import messages as m
from dispatch.queue import Queue
from dispatch.records import RequestRecord
from dispatch.rules import QueueRules
from dispatch.scores import Strategy
from tests.dispatch.twin import MODEL

TURN, PINS = f"{{s0}}:turn:{MODEL}", f"{{s0}}:pins:{MODEL}"


async def enqueue(queue: Queue, *, cost: int = 10, prompt: int = 0, strategy: str = "") -> RequestRecord:
    asked = m.InferenceRequest(m.new_id(), MODEL, m.InputKind.CHAT, m.Sampling(10))
    new = m.NewRequest(asked.id, MODEL, m.encode(asked), asked.kind, cost, 60_000, prompt_tokens=prompt, strategy=strategy)
    await queue.enqueue(new)
    record = await queue.record(asked.id)
    assert record is not None
    return record


async def test_the_turn_stands_as_long_as_a_worker_parks(redis: Redis) -> None:
    """Else it began at 1 after a quiet day, and one worker took all until the count was back where it had been."""
    queue = Queue(redis, QueueRules())
    await queue.park(m.Offer("w-1", MODEL, 100, 4, 1.0))
    await enqueue(queue, strategy=Strategy.ROUND_ROBIN)
    await redis.pexpire(TURN, 1_000)
    await queue.park(m.Offer("w-1", MODEL, 100, 4, 1.0))
    assert await redis.pttl(TURN) > 3_600_000


async def test_a_weight_that_changes_takes_no_turns_away(redis: Redis) -> None:
    """Weights are measured anew with each beat: a tenth less must not cost a worker a tenth of all it ever had."""
    queue = Queue(redis, QueueRules())
    for worker in ("w-1", "w-2"):
        await queue.park(m.Offer(worker, MODEL, 100_000, 5_000, 100.0))
    for _ in range(1_000):
        await enqueue(queue, strategy=Strategy.WEIGHTED_ROUND_ROBIN)
    await queue.park(m.Offer("w-1", MODEL, 100_000, 5_000, 90.0))
    after = [(await enqueue(queue, strategy=Strategy.WEIGHTED_ROUND_ROBIN)).worker for _ in range(10)]
    assert 4 <= after.count("w-1") <= 6


async def test_a_keeper_that_is_gone_for_good_is_forgotten(redis: Redis) -> None:
    queue = Queue(redis, QueueRules(pin_ms=0))
    await redis.sadd(PINS, "w-gone")
    await queue.park(m.Offer("w-1", MODEL, 100, 4, 1.0))
    await enqueue(queue, cost=60)
    big = await enqueue(queue, cost=80)
    await queue.park(m.Offer("w-1", MODEL, 100, 4, 1.0))
    record = await queue.record(big.id)
    assert record is not None and record.pinned == "w-1"
    assert await redis.smembers(PINS) == {b"w-1"}


async def test_a_worker_that_says_nothing_of_prompts_is_charged_none(redis: Redis) -> None:
    """Its scripts would never say that one is done: it would look ever busier."""
    queue = Queue(redis, QueueRules())
    await queue.park(m.Offer("w-old", MODEL, 100, 4, 1.0))
    await redis.hdel("{s0}:worker:w-old", "prefill_weight", "prefill")
    assert (await enqueue(queue, prompt=7)).worker == "w-old"
    assert await redis.exists("{s0}:prefill:w-old") == 0


async def test_a_prompt_that_an_older_release_left_behind_is_cleared_away(redis: Redis) -> None:
    queue = Queue(redis, QueueRules())
    await queue.park(m.Offer("w-1", MODEL, 100, 4, 1.0))
    held = await enqueue(queue, prompt=7)
    await redis.hset("{s0}:prefill:w-1", "s0.left", "900")
    await queue.park(m.Offer("w-1", MODEL, 100, 4, 1.0))
    assert await redis.hgetall("{s0}:prefill:w-1") == {held.id.encode(): b"7"}
    assert await redis.hget("{s0}:worker:w-1", "prefill") == b"7"
