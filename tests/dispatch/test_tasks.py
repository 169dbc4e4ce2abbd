"""Ending tasks for good: a cancellation may be lost on the way, and a task may fail while it ends."""

import asyncio
from contextlib import suppress

from dispatch.tasks import cancelled


async def test_a_cancellation_that_was_swallowed_is_said_again() -> None:
    lost = 0

    async def loses_the_first() -> None:
        nonlocal lost
        with suppress(asyncio.CancelledError):  # as asyncio.wait_for does before Python 3.12 when its result comes just then
            await asyncio.Event().wait()
        lost += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(loses_the_first())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await cancelled(task)
    assert (task.cancelled(), lost) == (True, 1)


async def test_what_has_ended_or_fails_while_it_ends_is_no_matter() -> None:
    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while ending")

    async def fails_at_once() -> None:
        raise ValueError("before")

    failing, failed = asyncio.create_task(fails()), asyncio.create_task(fails_at_once())
    await asyncio.sleep(0)
    await cancelled(failing, failed)
    assert isinstance(failing.exception(), ValueError)
    assert isinstance(failed.exception(), ValueError)
    await cancelled()
