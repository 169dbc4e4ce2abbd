"""A stranger with old papers: it keeps the fences of grants that are over, and tries to write with them.

What a stopped worker does now and then, this does several times a second: each answer but a refusal is a violation.
Never here: what a refusal is (checker.py).
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable

from chaos.scene import AWAY, Scene
from dispatch.messages import Grant
from dispatch.queue import Queue
from dispatch.records import plain_fields

_REMEMBERED = 400
_EVERY_S = 0.15


class Forger:
    """One stranger."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene = scene
        self._rng = random.Random(f"{seed} forger")
        self._old: deque[Grant] = deque(maxlen=_REMEMBERED)

    async def run(self) -> None:
        """Forge for ever."""
        while True:
            await asyncio.sleep(_EVERY_S * 2 * self._rng.random())
            try:
                async with asyncio.timeout(2):
                    queue = await self._scene.queue()
                    await self._remember()
                    if self._rng.random() < 0.3:
                        await self._with_a_wrong_nonce(queue)
                    elif self._old:
                        await self._with_old_papers(queue, self._rng.choice(self._old))
            except AWAY:
                await asyncio.sleep(0.2)

    async def _remember(self) -> None:
        redis, keys = await self._scene.redis(), self._scene.keys
        raw = await redis.srandmember(keys.leases(self._rng.choice(self._scene.models)))
        if raw is None:
            return
        stored = plain_fields(await redis.hgetall(keys.request(raw.decode())))
        if stored.get("state") == "running":
            self._old.append(Grant(raw.decode(), stored["worker"], int(stored["attempt"]), stored["nonce"]))

    async def _with_old_papers(self, queue: Queue, grant: Grant) -> None:
        record = await queue.record(grant.request)
        moved_on = record is not None and (record.ended_at_ms > 0 or record.attempt > grant.attempt)
        if record is None or not moved_on:
            return
        if record.ended_at_ms > 0 and record.attempt == grant.attempt:
            # Its own worker may say again what it said last: those are refused only where they would write.
            await self._try("append", grant, lambda: _append(queue, grant, record.seq + 1))
            await self._try("begin", grant, lambda: _begin(queue, grant))
            await self._try("renew", grant, lambda: _renew(queue, grant))
            await self._try("release", grant, lambda: _word(queue.release(grant)))
            return
        what = self._rng.choice(("append", "finish", "release", "retry", "begin", "renew"))
        tries: dict[str, Callable[[], Awaitable[str]]] = {
            "append": lambda: _append(queue, grant, record.seq + 1),
            "finish": lambda: _word(queue.finish(grant, record.seq + 1, b'{"text":"forged","tokens":[1]}', b"{}")),
            "release": lambda: _word(queue.release(grant)),
            "retry": lambda: _word(queue.retry(grant, "engine_error", "forged")),
            "begin": lambda: _begin(queue, grant),
            "renew": lambda: _renew(queue, grant),
        }
        await self._try(what, grant, tries[what])

    async def _with_a_wrong_nonce(self, queue: Queue) -> None:
        if not self._old:
            return
        last = self._old[-1]
        forged = Grant(last.request, last.worker, last.attempt, "0" * 16)
        record = await queue.record(last.request)
        if record is not None:
            await self._try("append", forged, lambda: _append(queue, forged, record.seq + 1))

    async def _try(self, what: str, grant: Grant, call: Callable[[], Awaitable[str]]) -> None:
        answer = await call()
        self._scene.record("forged", id=grant.request, attempt=grant.attempt, what=what, answer=answer)


async def _append(queue: Queue, grant: Grant, seq: int) -> str:
    return (await queue.append(grant, seq, b'{"text":"forged","tokens":[1]}')).value


async def _begin(queue: Queue, grant: Grant) -> str:
    return "fenced" if await queue.begin(grant) is None else "ok"


async def _renew(queue: Queue, grant: Grant) -> str:
    return "fenced" if (grant.request, grant.attempt) in (await queue.renew(grant.worker, [grant])).lost else "ok"


async def _word(call: Awaitable[object]) -> str:
    return str(getattr(await call, "value", ""))
