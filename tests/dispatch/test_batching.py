"""Commands of many tasks in few round trips: each gets its own reply, whatever the others do."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

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
    asked = [asyncio.ensure_future(batched.execute("EVAL", "return ARGV[1]", 0, n)) for n in range(100)]
    await asyncio.sleep(0)
    for task in asked[::2]:
        task.cancel()
    replies = await asyncio.gather(*asked, return_exceptions=True)
    assert [r.decode() for r in replies[1::2]] == [str(n) for n in range(1, 100, 2)]  # type: ignore[union-attr]


class _Instant:
    """Wires whose round trips take no time, so that lanes end in every order beside new commands."""

    def take(self) -> "_Instant":
        return self

    async def give_back(self, wire: "_Instant") -> None: ...

    async def exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [None] * len(commands)


async def test_no_command_is_forgotten_between_two_lanes() -> None:
    batched = Batched(SimpleNamespace(connection_pool=SimpleNamespace(wires=_Instant())))

    async def asking(delay: int) -> None:
        for _ in range(200):
            for _ in range(delay):
                await asyncio.sleep(0)
            await batched.execute("PING")

    async with asyncio.timeout(20):
        await asyncio.gather(*(asking(n // 2) for n in range(6)))
