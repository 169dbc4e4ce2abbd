"""Looking whether Redis answers: however many ask at once, the one connection is asked once."""

import asyncio
import contextlib

from dispatch.history import ServerHistory
from gateway.watching import Watch

HERE = ServerHistory("run-1", "repl-1", True)


async def test_who_looks_at_the_same_time_shares_one_look() -> None:
    asked, answered, looks = asyncio.Event(), asyncio.Event(), 0

    async def look() -> ServerHistory:
        nonlocal looks
        looks += 1
        asked.set()
        await answered.wait()
        return HERE

    watch = Watch(look)
    first = asyncio.create_task(watch.look())
    others = [asyncio.create_task(watch.look()) for _ in range(50)]
    await asked.wait()
    first.cancel()  # the one that began it leaves
    with contextlib.suppress(asyncio.CancelledError):
        await first
    answered.set()
    await asyncio.gather(*others)
    assert (looks, watch.history, watch.away) == (1, HERE, False)
    await watch.look()
    assert looks == 2, "a later one looks anew"
