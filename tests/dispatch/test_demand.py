"""What the autoscaler reads of the queue."""

import pytest
from redis.asyncio import Redis

from dispatch.demand import Demand
from dispatch.keys import ShardKeys
from dispatch.messages import InferenceRequest, InputKind, NewRequest, Sampling, encode, new_id
from dispatch.queue import Queue


async def milliseconds(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1_000 + int(micros) // 1_000


async def test_the_share_of_prompts_is_that_of_the_newest_requests_of_the_model(redis: Redis, queue: Queue) -> None:
    demand = Demand(redis, ShardKeys("s0"))
    assert await demand.prompt_share("m") is None
    for model, cost, prompt in (("m", 100, 10), ("m", 100, 90), ("m", 300, 290), ("other", 100, 0)):
        request = InferenceRequest(new_id(), model, InputKind.COMPLETION, Sampling(10), prompt="x")
        await queue.enqueue(
            NewRequest(request.id, model, encode(request), InputKind.COMPLETION, cost, 60_000, prompt_tokens=prompt)
        )
        begun_ms = await milliseconds(redis)
        while await milliseconds(redis) == begun_ms:
            pass  # the order within a millisecond is not told
    assert await demand.prompt_share("m") == pytest.approx(390 / 500)
    assert await demand.prompt_share("m", sample=2) == pytest.approx(380 / 400)
    assert await demand.prompt_share("m", most=1) is None
