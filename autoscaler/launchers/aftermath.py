"""What the end of a worker's process means for what it held: told to Redis at once, by the exit its launcher saw.

The lease would notice, seconds later. Never here: starting the worker again.
"""

import asyncio
import signal
import socket
import time

from autoscaler.launchers.base import Exit
from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.reports import Heartbeat
from dispatch.states import WorkerState

OWN_FAULT = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
"""Signals that answer what a process did: what it ran is suspect. Any other one was sent by somebody."""
_AGAIN_S = 0.2


class Aftermath:
    """Moves on what dead workers of this machine held. `host` as their heartbeats say it."""

    def __init__(self, queue: Queue, fleet: Fleet, host: str = "") -> None:
        self._queue = queue
        self._fleet = fleet
        self._host = host or socket.gethostname()

    async def of(self, end: Exit) -> int:
        """After an exit: how many requests moved. Tries for as long as a lease; then the sweep has done it. 0 for a clean one."""
        if end.code == 0:
            return 0
        give_up_at = time.monotonic() + self._queue.rules.lease_ms / 1000
        while True:
            try:
                return sum([await self._move_on(beat, end) for beat in await self._incarnations(end.pid)])
            except STORE_FAULT:
                if time.monotonic() > give_up_at:
                    return 0
            await asyncio.sleep(_AGAIN_S)

    async def _incarnations(self, pid: int) -> list[Heartbeat]:
        return [beat for beat in await self._fleet.workers() if (beat.host, beat.pid) == (self._host, pid)]

    async def _move_on(self, beat: Heartbeat, end: Exit) -> int:
        suspects = await self._queue.held(beat.id) if -end.code in OWN_FAULT else ()
        moved = await self._queue.abandon(beat.id, str(end), suspects)
        if beat.state is not WorkerState.GONE:  # that one's last word says more than we know
            await self._fleet.leave(beat.id)
        return moved
