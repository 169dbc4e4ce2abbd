"""At the memory limit of Redis: submits are refused with nothing written; what is under way comes to its end."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from dispatch.redis_client import connect
from dispatch.states import RequestState
from tests.dispatch import walks
from tests.dispatch.invariants import snapshot
from tests.dispatch.twin import Twin
from tests.servers import RealServer, running


@pytest.fixture(scope="module")
def small_url(server: RealServer) -> AsyncIterator[str]:
    """A server of the same make with little memory."""
    with running(server.name, "--maxmemory", "16mb", "--maxmemory-policy", "noeviction") as small:
        yield small.url


@pytest.fixture
async def twin(small_url: str) -> AsyncIterator[Twin]:
    redis = connect(small_url)
    await redis.flushall()
    await redis.config_set("maxmemory", "16mb")
    yield Twin(redis, walks.RULES)
    await redis.aclose()


async def fill(redis: Redis) -> None:
    for size in (1 << 20, 1 << 14, 1 << 8):
        with pytest.raises(OutOfMemoryError):
            for n in range(100_000):
                await redis.set(f"filler:{size}:{n}", b"x" * size, ex=60)
    # The server's own buffers shrink again by and by: with less allowed than the values take, it stays full.
    await redis.config_set("maxmemory", "8mb")


async def test_a_submit_is_refused_and_writes_nothing(twin: Twin) -> None:
    await twin.park("w-1")
    await fill(twin.redis)
    before = await snapshot(twin.redis)
    new = twin.new(reader="g-1", idempotency="k", body_hash="b")
    with pytest.raises(OutOfMemoryError):
        await twin.queue.enqueue(new)
    after = await snapshot(twin.redis)
    assert after.of == before.of
    assert after.pttl.keys() == before.pttl.keys()


async def test_what_is_under_way_comes_to_its_end(twin: Twin) -> None:
    first, second, third, fourth = [await walks.running(twin, reader="g-1") for _ in range(4)]
    waiting = twin.new(500)
    await twin.enqueue(waiting)
    await fill(twin.redis)
    await twin.append(first, 1, b"one")
    await twin.renew("w-1", [first, second, third, fourth])
    await twin.finish(first, 2, b"two")
    await twin.cancel(second.request)
    await twin.cancel(waiting.id)
    await twin.retry(third)
    await twin.sweep()
    await twin.release(fourth)
    await twin.begin(twin.grant(fourth.request))
    await twin.attach("g-2", fourth.request)
    await twin.park("w-2")
    await twin.advance(5_000)
    await twin.sweep()
    await twin.begin(twin.grant(third.request))
    await twin.abandon(twin.record(third.request).worker, ())
    assert twin.record(first.request).state is RequestState.COMPLETED
    assert twin.record(second.request).state is RequestState.CANCELLED
