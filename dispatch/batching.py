"""Commands of many tasks in few round trips: what is asked while a round trip is under way goes together in the next one.

A lone command goes out at once. A busy process writes and reads a hundred commands a time: less work for both sides, and no
task waits for a connection of its own. A caller that is cancelled leaves the wire alone; its command still happens.
Never here: what may be repeated (the callers know), blocking commands (they have a connection of their own).
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from dispatch.faults import NotReplicated
from dispatch.replicas import Replicas
from dispatch.wire import Wire, Wires

_LANES = 2  # one batch is on its way while the next gathers; more lanes only make smaller batches
_BATCH = 256
_JOINED = 32  # the server does nothing else meanwhile
_WAIT_KEY_TTL_MS = 60_000
_WRITE = "#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])"
"""Also at the memory limit, where a plain SET is refused: without a write of its own a WAIT would wait for nothing."""


Asked = tuple[tuple[Any, ...], tuple[Any, ...] | None, asyncio.Future[Any]]
"""A command, its own words if it may be joined, and who waits for the reply."""


class Call:
    """One command on the wire, for one or several."""

    __slots__ = ("futures", "joined", "words")

    def __init__(self, command: tuple[Any, ...], joined: bool) -> None:
        self.words: list[Any] = list(command)
        self.joined = joined
        self.futures: list[asyncio.Future[Any]] = []

    def answer(self, reply: Any) -> None:
        """To each who asked its own; an error of the whole call to all. Raises nothing."""
        replies = reply if self.joined and not isinstance(reply, Exception) else [reply] * len(self.futures)
        if not isinstance(replies, list) or len(replies) != len(self.futures):
            replies = [ResponseError(f"No reply for each of {len(self.futures)} joined requests: {self.words[1]}")] * len(
                self.futures
            )
        for future, each in zip(self.futures, replies, strict=True):
            if future.done():
                continue
            if isinstance(each, Exception):
                future.set_exception(each)
            else:
                future.set_result(each)


def together(batch: Sequence[Asked]) -> list[Call]:
    """All of a batch are asked at once, and may be done in any order: who asks waits for the reply before it asks again, and one
    who broke off may be overtaken by the other lane as well."""
    calls: list[Call] = []
    open_calls: dict[tuple[Any, ...], Call] = {}
    for command, own, future in batch:
        call = None if own is None else open_calls.get(command)
        if call is None or len(call.futures) >= _JOINED:
            call = Call(command, own is not None)
            calls.append(call)
            if own is not None:
                open_calls[command] = call
        if own is not None:
            call.words += own
        call.futures.append(future)
    return calls


def _missed(reply: Any, missing: Exception) -> Any:
    """`missing`, but an error stays what it is; of a joined call each for itself."""
    if isinstance(reply, list) and any(isinstance(each, Exception) for each in reply):
        return [_missed(each, missing) for each in reply]
    return reply if isinstance(reply, Exception) else missing


class Batched:
    """Runs commands on `client` (redis.asyncio.Redis) in batches.

    With `wait_replica_ms` and `wait_key` each batch ends with a WAIT for all replicas that stood beside this master lately
    (replicas.py); without them all of the batch are NotReplicated. WAIT covers what its own connection wrote: the write to
    `wait_key` before it stands behind all others of the server, so a repeated command and a read are covered too, whichever
    connection their first one went.
    """

    def __init__(self, client: Any, *, wait_replica_ms: int = 0, wait_key: str = "") -> None:
        self._client = client
        self._wait_replica_ms = wait_replica_ms
        self._wait_key = wait_key
        self._replicas = Replicas()
        self._wires: Wires = client.connection_pool.wires
        self._waiting: deque[Asked] = deque()
        self._lanes: set[asyncio.Task[None]] = set()
        self._running = 0

    def execute(self, *command: Any) -> Awaitable[Any]:
        """The reply to one command; raises what the client raises for it, or for the whole round trip."""
        return self._ask(command, None)

    def join(self, own: tuple[Any, ...], *command: Any) -> Awaitable[Any]:
        """The same for a command that takes several of what it is asked for, each so many words behind it, and that replies
        with a list: those that are asked together go as one."""
        return self._ask(command, own)

    def _ask(self, command: tuple[Any, ...], own: tuple[Any, ...] | None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, own, future))
        if self._running < _LANES:
            self._running += 1
            lane = asyncio.create_task(self._run())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        return future

    async def _run(self) -> None:
        wire = None if self._wait_replica_ms else self._wires.take()
        try:
            while self._waiting:
                await self._round_trip(wire, [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))])
        finally:
            # Counted here and not by the task's end: a command asked between the two would wait for a lane that is gone.
            self._running -= 1
            if wire is not None:
                await self._wires.give_back(wire)

    async def _round_trip(self, wire: Wire | None, batch: list[Asked]) -> None:
        calls = together(batch)
        try:
            commands = [tuple(call.words) for call in calls]
            replies = await (self._replicated(commands) if wire is None else wire.exchange(commands))
        except asyncio.CancelledError:
            for _, _, future in batch:
                future.cancel()
            raise
        except Exception as error:
            replies = [error] * len(calls)
        for call, reply in zip(calls, replies, strict=True):
            call.answer(reply)

    async def _replicated(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """The replies, once the replicas have what the commands wrote; else NotReplicated in the place of each."""
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        asked = self._replicas.needed
        self._wait_behind(pipe, asked)
        *replies, written, acknowledged, info = await pipe.execute(raise_on_error=False)
        missing = await self._missing(asked, written, acknowledged, info)
        return replies if missing is None else [_missed(each, missing) for each in replies]

    def _wait_behind(self, pipe: Any, replicas: int) -> None:
        """A write, the wait until so many replicas have it, and who they are."""
        pipe.execute_command("EVAL", _WRITE, 1, self._wait_key, _WAIT_KEY_TTL_MS)
        pipe.execute_command("WAIT", replicas, self._wait_replica_ms)
        pipe.execute_command("INFO", "replication")

    async def _missing(self, asked: int, written: Any, acknowledged: Any, info: Any) -> Exception | None:
        """Why the batch is not replicated, or None: it is."""
        history = None
        while True:
            for reply in (written, acknowledged, info):
                if isinstance(reply, Exception):
                    return reply
            if history not in (None, info.get("master_replid")):
                return NotReplicated("another master answers now")
            needed = self._replicas.saw(info, time.monotonic())
            if needed and acknowledged >= needed:
                return None
            if needed <= asked:
                return NotReplicated(f"{acknowledged} of {needed or asked} replicas have it")
            # There are more than this process knew of: wait for all of them.
            asked, history = needed, info.get("master_replid")
            pipe = self._client.pipeline(transaction=False)
            self._wait_behind(pipe, asked)
            written, acknowledged, info = await pipe.execute(raise_on_error=False)
