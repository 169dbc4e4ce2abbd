"""What becomes of what a dead engine held: who is suspect, and telling Redis until it has heard.

Never here: the next engine (engine_room.py).
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from worker.heartbeat import Complaint
from worker.held import Held
from worker.life import Death

LAST_TRY_S = 5.0
"""How long a worker that ends tries to say so to a Redis that is away."""
_SETTLE_S = 0.3
"""How long those who share a dead engine get to tell their last words from its death."""


async def suspects_of(held: Held, death: Death) -> list[str]:
    """The requests that were in the engine when it died of its own fault; in one that hung, since before it fell silent.

    What was complete before is written first; and the others learn of the death, so that nobody's last words are taken for it.
    """
    give_up_at = time.monotonic() + (0 if death.hung else _SETTLE_S)
    while time.monotonic() < give_up_at and any(not e.crashed and (e.generating or e.is_ending) for e in held):  # noqa: ASYNC110 - a few looks
        await asyncio.sleep(0.01)
    if not death.own_fault:
        return []
    latest = time.monotonic() if death.silent_since is None else death.silent_since
    return [e.grant.request for e in held if e.generating and e.generating_since <= latest]


async def abandon(queue: Queue, fleet: Fleet, worker: str, evidence: str, suspects: Sequence[str]) -> None:
    """Bar that incarnation and move what it held on, as soon as Redis answers."""
    complaint = Complaint("abandon what the dead engine held")
    while True:
        try:
            await queue.abandon(worker, evidence, suspects)
            await fleet.leave(worker)
            complaint.worked()
            return
        except STORE_FAULT as error:
            complaint.failed(error)
            await asyncio.sleep(0.2)


async def last_try(call: Callable[[], Awaitable[object]]) -> None:
    """Do it if Redis answers within a few seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_TRY_S):
            while True:
                try:
                    await call()
                    return
                except STORE_FAULT:
                    await asyncio.sleep(0.1)
