"""Commands of many tasks in few round trips: what is asked while a round trip is under way goes together in the next one.

A lone command goes out at once. A busy process writes and reads a hundred commands a time: less work for both sides, and no
task waits for a connection of its own. A caller that is cancelled leaves the wire alone; its command still happens.
Never here: what may be repeated (the callers know), blocking commands (they have a connection of their own).
"""

import asyncio
from collections import deque
from typing import Any

from redis.exceptions import OutOfMemoryError

from dispatch.faults import NotReplicated

_LANES = 2  # one batch is on its way while the next gathers; more lanes only make smaller batches
_BATCH = 256
_WAIT_KEY_TTL_MS = 60_000


class Batched:
    """Runs commands on `client` (redis.asyncio.Redis) in batches.

    With `wait_replica_ms` and `wait_key` each batch ends with a WAIT for one replica; without it all of the batch are
    NotReplicated. WAIT covers what its own connection wrote: the write to `wait_key` before it stands behind all others
    of the server, so a repeated command is covered too, whichever connection its first one went.
    """

    def __init__(self, client: Any, *, wait_replica_ms: int = 0, wait_key: str = "") -> None:
        self._client = client
        self._wait_replica_ms = wait_replica_ms
        self._wait_key = wait_key
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
            if self._wait_replica_ms:
                pipe.execute_command("SET", self._wait_key, "1", "PX", _WAIT_KEY_TTL_MS)
                pipe.execute_command("WAIT", 1, self._wait_replica_ms)
            replies = await pipe.execute(raise_on_error=False)
            if self._wait_replica_ms:
                replies = _unless_replicated(replies)
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


def _unless_replicated(replies: list[Any]) -> list[Any]:
    *replies, written, replicas = replies
    # At the memory limit that write is refused, and what ends requests is not: they wrote themselves, so WAIT covers them.
    refused = written if isinstance(written, Exception) and not isinstance(written, OutOfMemoryError) else None
    wrong = replicas if isinstance(replicas, Exception) else refused
    if wrong is not None:
        return [each if isinstance(each, Exception) else wrong for each in replies]
    if replicas >= 1:
        return replies
    return [r if isinstance(r, Exception) else NotReplicated("no replica has it yet") for r in replies]
