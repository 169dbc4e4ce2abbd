"""Ending asyncio tasks. Never here: what they do."""

import asyncio
from typing import Any

_AGAIN_S = 0.2


async def cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel them and wait until they are over.

    More than once, for a cancellation can be lost: `asyncio.wait_for` before Python 3.12, which redis-py sends with, returns
    its result in place of a cancellation that comes at the same moment.
    """
    left: set[asyncio.Future[Any]] = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)
