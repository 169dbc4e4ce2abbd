"""The heartbeat: every beat renews the leases, parks the pull and says that the worker lives.

Inference runs elsewhere (a child process), so nothing here waits for it; but leases are renewed only while the engine
makes steps: a hung GPU must lose its requests. Never here: what is held (worker/held.py), what to offer (admission.py).
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from enum import Enum

from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.messages import Offer
from dispatch.queue import Queue
from dispatch.reports import Heartbeat
from worker.held import Held

_log = logging.getLogger("penstock.worker")
_COMPLAIN_EVERY_S = 30.0


class Complaint:
    """Says that Redis is away: at once, then once in a while, and when it is back."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None
        self._said_at = 0.0

    def failed(self, error: Exception) -> None:
        now = time.monotonic()
        self._since = self._since or now
        if now - self._said_at >= _COMPLAIN_EVERY_S:
            self._said_at = now
            fields = {"error.type": type(error).__name__, "error.message": str(error)}
            _log.warning(f"cannot {self._what}: Redis does not answer", extra=fields)

    def worked(self) -> bool:
        """Note a success; True if it ends an outage."""
        if self._since is None:
            return False
        _log.warning("reach Redis again", extra={"away_s": round(time.monotonic() - self._since, 1)})
        self._since, self._said_at = None, 0.0
        return True


class Steps:
    """Whether the engine makes steps while it owes some. `on_hung` is told when it made none for `hang_s`: for how long, and
    at which look it was first found silent. What came later had no part in that, even if all who were there have left.

    Silence is counted from look to look, `longest_gap_s` at most: a process that was itself stopped has heard nothing.
    """

    def __init__(self, count: Callable[[], int], on_hung: Callable[[float, float], None], longest_gap_s: float) -> None:
        self.hang_s = math.inf
        self._count = count
        self._on_hung = on_hung
        self.longest_gap_s = longest_gap_s
        self._last = -1
        self._looked_at = 0.0
        self._silent_s = 0.0
        self._silent_since: float | None = None
        self._stalled = False

    def look(self, owing: bool, now: float) -> "Pace":
        """Look again."""
        count = self._count()
        gap_s, self._looked_at = min(self.longest_gap_s, now - self._looked_at), now
        self._silent_s = 0.0 if count != self._last or not owing else self._silent_s + gap_s
        if count != self._last:
            self._silent_since = None
        elif owing and self._silent_since is None:
            self._silent_since = now
        self._last = count
        if self._silent_s > self.hang_s:
            self._on_hung(self._silent_s, self._silent_since or now)
            return Pace.HUNG
        stalled = self._silent_s > self.hang_s / 2
        if stalled and not self._stalled:
            _log.warning("see no step of the engine: take nothing more", extra={"silent_s": round(self._silent_s, 1)})
        self._stalled = stalled
        return Pace.STALLED if stalled else Pace.STEADY


class Pace(Enum):
    """How the engine gets on: as it should; too silent to be given more; too silent to keep what it has."""

    STEADY = 1
    STALLED = 2
    HUNG = 3


class Heart:
    """Beats until cancelled. `offer` is None while there is nothing to park (starting, loading)."""

    def __init__(
        self,
        queue: Queue,
        fleet: Fleet,
        held: Held,
        steps: Steps,
        *,
        say: Callable[[], Heartbeat],
        offer: Callable[[], Offer | None],
        on_barred: Callable[[str], None],
        on_return: Callable[[], None],
        besides: Sequence[Callable[[], Awaitable[None]]],
        every_s: float,
        ttl_s: float,
    ) -> None:
        self._queue = queue
        self._fleet = fleet
        self._held = held
        self._steps = steps
        self._say = say
        self._offer = offer
        self._on_barred = on_barred
        self._on_return = on_return
        self._besides = besides
        self._every_s = every_s
        self._ttl_ms = int(ttl_s * 1000)
        self._complaint = Complaint("beat")
        self._beating = asyncio.Lock()

    async def run(self) -> None:
        """Beat at a steady pace, whatever a beat takes."""
        due = time.monotonic()
        while True:
            try:
                await self.beat()
            except Exception:
                # A bug must not end the beat: the worker would go on deaf, and lose all it holds.
                _log.exception("meet a bug in a heartbeat")
            due = max(due + self._every_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def beat(self) -> None:
        """One beat. Redis being away is noted and survived.

        One at a time: an older offer must not overtake the one that says "no more".
        """
        async with self._beating:
            await self._beat()

    async def park_now(self) -> None:
        """Say at once what may be held. In turn with the beats, as an older offer must not overtake a newer one."""
        async with self._beating:
            await self._park(True)

    async def _beat(self) -> None:
        pace = self._steps.look(self._held.is_generating(), time.monotonic())
        results = await asyncio.gather(
            self._tell(),
            self._renew() if pace is not Pace.HUNG else _nothing(),
            self._park(pace is Pace.STEADY),
            *(each() for each in self._besides),
            return_exceptions=True,
        )
        failed = next((r for r in results if isinstance(r, BaseException)), None)
        if failed is None:
            if self._complaint.worked():
                self._on_return()
        elif isinstance(failed, STORE_FAULT):
            self._complaint.failed(failed)
        else:
            raise failed

    async def _tell(self) -> None:
        """What cannot be said of this worker must not keep it from renewing."""
        await self._fleet.beat(self._say(), self._ttl_ms)

    async def _renew(self) -> None:
        offer = self._offer()
        if offer is None:
            return
        named = self._held.grants()
        renewed = await self._queue.renew(offer.worker, named)
        lost = set(renewed.lost)
        for grant in named:
            execution = self._held.find(grant.request, grant.attempt)
            if (grant.request, grant.attempt) in lost and execution is not None:
                execution.stop("its lease was lost")
        for grant in renewed.unknown:
            # Begun while the renewal was on its way, or else a begin of ours whose reply was lost for good.
            if self._held.find(grant.request, grant.attempt) is None:
                _log.warning("give back what is not known here", extra={"request": grant.request, "attempt": grant.attempt})
                await self._queue.release(grant)

    async def _park(self, makes_steps: bool) -> None:
        offer = self._offer()
        if offer is None:
            return
        if not makes_steps:
            offer = replace(offer, accepting=False)
        if (await self._queue.park(offer)).barred:
            self._on_barred(offer.worker)


async def _nothing() -> None:
    """A beat without a renewal."""
