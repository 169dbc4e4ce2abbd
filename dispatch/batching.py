"""Commands of many tasks in few round trips: what is asked while a round trip is under way goes together in the next one.

A lone command goes out at once. A busy process writes and reads a hundred commands a time: less work for both sides, and no
task waits for a connection of its own. A caller that is cancelled leaves the wire alone; its command still happens.
Never here: what may be repeated (the callers know), blocking commands (they have a connection of their own).
"""

import asyncio
from collections import deque
from typing import Any

_LANES = 2  # one batch is on its way while the next gathers; more lanes only make smaller batches
_BATCH = 256


class Batched:
    """Runs commands on `client` (redis.asyncio.Redis) in batches."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._waiting: deque[tuple[tuple[Any, ...], asyncio.Future[Any]]] = deque()
        self._lanes: set[asyncio.Task[None]] = set()
        self._running = 0

    async def execute(self, *command: Any) -> Any:
        """The reply to one command; raises what the client raises for it, or for the whole round trip."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if self._running < _LANES:
            self._running += 1
            lane = asyncio.create_task(self._run())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._round_trip([self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))])
        finally:
            # Counted here and not by the task's end: a command asked between the two would wait for a lane that is gone.
            self._running -= 1

    async def _round_trip(self, batch: list[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        try:
            pipe = self._client.pipeline(transaction=False)
            for command, _ in batch:
                pipe.execute_command(*command)
            replies = await pipe.execute(raise_on_error=False)
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:
            replies = [error] * len(batch)
        for (_, future), reply in zip(batch, replies, strict=True):
            if future.done():
                continue
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)
