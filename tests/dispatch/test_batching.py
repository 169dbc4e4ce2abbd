"""Commands of many tasks in few round trips: each gets its own reply, whatever the others do."""

import asyncio
from typing import Any, ClassVar

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from dispatch.batching import Batched


async def test_each_gets_its_own_reply_or_error(redis: Redis) -> None:
    batched = Batched(redis)

    async def one(n: int) -> str:
        if n % 7 == 0:
            with pytest.raises(ResponseError):
                await batched.execute("EVAL", "return redis.error_reply('no')", 0)
            return str(n)
        return str((await batched.execute("EVAL", "return ARGV[1]", 0, n)).decode())

    assert await asyncio.gather(*(one(n) for n in range(1000))) == [str(n) for n in range(1000)]


async def test_a_cancelled_caller_disturbs_nobody(redis: Redis) -> None:
    batched = Batched(redis)
    asked = [asyncio.create_task(batched.execute("EVAL", "return ARGV[1]", 0, n)) for n in range(100)]
    await asyncio.sleep(0)
    for task in asked[::2]:
        task.cancel()
    replies = await asyncio.gather(*asked, return_exceptions=True)
    assert [r.decode() for r in replies[1::2]] == [str(n) for n in range(1, 100, 2)]  # type: ignore[union-attr]


class _Instant:
    """A client whose round trips take no time, so that lanes end in every order beside new commands."""

    response_callbacks: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.connection_pool = self

    async def get_connection(self) -> "_Instant":
        return self

    async def release(self, connection: "_Instant") -> None: ...

    async def send_packed_command(self, packed: bytes) -> None: ...

    async def read_response(self) -> None: ...


async def test_no_command_is_forgotten_between_two_lanes() -> None:
    batched = Batched(_Instant())

    async def asking(delay: int) -> None:
        for _ in range(200):
            for _ in range(delay):
                await asyncio.sleep(0)
            await batched.execute("PING")

    async with asyncio.timeout(20):
        await asyncio.gather(*(asking(n // 2) for n in range(6)))
