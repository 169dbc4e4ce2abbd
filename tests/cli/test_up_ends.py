"""`up` ends when told to, even where its first word is lost."""

import asyncio
import os
import signal
from contextlib import suppress

from penstock import up


class Stubborn:
    """A household whose watching loses the first cancellation."""

    def __init__(self) -> None:
        self.watching = asyncio.Event()
        self.stopped = False

    async def start(self) -> None: ...

    async def watch(self) -> None:
        self.watching.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def stop(self, at_once: asyncio.Event) -> None:
        self.stopped = True


async def test_a_lost_cancellation_does_not_keep_it_up() -> None:
    household = Stubborn()
    living = asyncio.create_task(up._live(household))  # type: ignore[arg-type]
    try:
        await household.watching.wait()
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(5):
            assert await living == 0
    finally:
        for number in up._SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
    assert household.stopped
