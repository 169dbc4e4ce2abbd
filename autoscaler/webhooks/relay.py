"""The relay: looks at the outbox, and puts a job for each due try onto RQ's queue of webhooks.

Anybody may run one, any number at once, and any may die: what is taken from the outbox and not tried in time is offered again.
So RQ may lose or double a job. Never here: trying (delivery.py), who takes the jobs (runner.py).
"""

import asyncio
import logging

from autoscaler.jobs.line import WEBHOOKS, JobLine
from autoscaler.jobs.payload import Op
from dispatch.faults import is_unreachable
from dispatch.outbox import Due, Outbox
from dispatch.settings_scale import WebhookSettings

AT_ONCE = 8
"""Tries at once in one runner."""
MOST_WAITING = 4 * AT_ONCE
"""Jobs on the queue before the relay waits: those of a runner that is away must not become a heap."""
_LOOK_EVERY_S = 0.25
_AWAY_S = 2.0
_log = logging.getLogger("penstock.webhooks")


def again_s(settings: WebhookSettings) -> float:
    """How long a taken try may need at worst, behind a full queue of receivers that are all too slow."""
    return (MOST_WAITING / AT_ONCE + 1) * settings.timeout_s + 2.0


class Relay:
    """Moves what is due from an outbox to a line of jobs."""

    def __init__(self, outbox: Outbox, line: JobLine, settings: WebhookSettings, *, look_every_s: float = _LOOK_EVERY_S) -> None:
        self._outbox = outbox
        self._line = line
        self._again_s = again_s(settings)
        self._look_every_s = look_every_s

    async def run(self) -> None:
        """Relay for ever; a Redis that is away is waited for."""
        away = False
        while True:
            try:
                moved = await self.once()
                wait_s = 0.0 if moved else self._look_every_s
                away = False
            except Exception as error:
                if not is_unreachable(error) and not isinstance(error, OSError):
                    _log.exception("the relay of webhooks stumbled: go on")
                elif not away:
                    _log.warning("webhooks wait: Redis does not answer", extra={"why": type(error).__name__})
                away, wait_s = True, _AWAY_S
            await asyncio.sleep(wait_s)

    async def once(self) -> int:
        """Put jobs for what is due now; returns how many."""
        free = MOST_WAITING - await self._line.waiting(WEBHOOKS)
        if free <= 0:
            return 0
        due = await self._outbox.take(again_ms=int(self._again_s * 1000), limit=free)
        for each in due:
            await self._put(each)
        return len(due)

    async def _put(self, due: Due) -> None:
        number = due.tried + 1
        await self._line.put(
            WEBHOOKS,
            Op.WEBHOOK,
            body={"request": due.request, "try": number},
            ttl_s=self._again_s,
            job_id=f"webhook-{due.request.rpartition('.')[2]}-{number}",
        )
