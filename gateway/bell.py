"""One waits, others ring: an event and its timeout in one future. Never here: what it rings for (reading.py)."""

import asyncio


class Bell:
    """For one who waits at a time."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[bool] | None = None

    def ring(self) -> None:
        """Wake whoever waits now."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    async def heard(self, within_s: float) -> bool:
        """Wait for a ring from now on; False: there was none in that time."""
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(within_s, _give_up, waiter)
        try:
            heard: bool = await waiter
            return heard
        finally:
            timer.cancel()
            self._waiter = None


def _give_up(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
