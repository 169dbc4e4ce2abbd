"""Whether Redis answers this gateway: looked at all the time, so that nothing has to wait for a timeout to find out.

A server that is stopped keeps its connections open: without this each request would wait out a socket's patience before
its 503. Never here: what follows for streams (streaming.py, they wait and go on) and for accepted requests (promises.py).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT, is_unreachable
from dispatch.history import ServerHistory

log = logging.getLogger("penstock.gateway")

_LOOK_EVERY_S = 0.5
_LOOK_AGAIN_S = 0.1
_ANSWER_WITHIN_S = 2.0
_RETRY_AFTER_S = 2


class Watch:
    """Looks for ever. `look` asks which server answers, on a connection that nothing else uses.

    `history` is the last answer, `answer_s` how long it took. `on_change` is called when another history goes on than before.
    """

    def __init__(self, look: Callable[[], Awaitable[ServerHistory]]) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.history: ServerHistory | None = None
        self.answer_s = 0.0
        self._look = look
        self._looking: asyncio.Task[None] | None = None
        self._away_since: float | None = None
        self._here = asyncio.Event()

    @property
    def away(self) -> bool:
        """Whether it does not answer now."""
        return self._away_since is not None

    async def until_here(self) -> None:
        """Return when it answers."""
        await self._here.wait()

    def refuse_if_away(self) -> None:
        """Raises PenstockError("redis_unavailable") at once instead of after a timeout."""
        if self.away:
            raise PenstockError(
                "redis_unavailable",
                "Redis does not answer, so nothing can be stored or read.",
                hint="Try again in a few seconds; the operator finds the reason in the gateway's log.",
                retry_after_s=_RETRY_AFTER_S,
            )

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN_S if self.away else _LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Look once. Who comes while a look is under way shares it: waiting for the one connection would look like silence."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_once())
        # Shielded: a client that leaves must not end the look of the others.
        await asyncio.shield(self._looking)

    async def _look_once(self) -> None:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                found = await self._look()
        except TimeoutError:
            self._silent("no answer in time")
        except STORE_FAULT as error:
            if not is_unreachable(error):
                raise
            self._silent(type(error).__name__)
        else:
            if found.is_master:
                self.answer_s = time.perf_counter() - started
                self._answered(found)
            else:
                self._silent("it is a replica: nothing can be written")

    def _answered(self, found: ServerHistory) -> None:
        before, self.history = self.history, found
        self._here.set()
        if self._away_since is not None:
            log.warning("Redis answers again", extra={"away_s": round(time.monotonic() - self._away_since, 1)})
            self._away_since = None
        if before is not None and before != found:
            log.warning("Redis goes on in another history: look for what it forgot", extra={"run_id": found.run_id[:12]})
            self.on_change()

    def _silent(self, why: str) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._here.clear()
            log.warning("Redis does not answer: refuse what comes in, keep open streams", extra={"why": why})
