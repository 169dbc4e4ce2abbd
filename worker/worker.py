"""A worker: start the engine, beat, take what was granted, drain. One of them is one process with one engine.

Never here: one request's work (execution.py), what fits (admission.py), the beat itself (heartbeat.py).
"""

import asyncio
import contextlib
import logging
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import uvloop

from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.messages import Heartbeat, Offer
from dispatch.processes import die_with_parent
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.settings import Settings
from dispatch.states import WorkerState
from worker.admission import needed, offer
from worker.engines.base import Engine, EngineDead, EngineInfo
from worker.engines.registry import engine_for
from worker.gpu import Gpus, find_gpus
from worker.heartbeat import Complaint, Heart, Steps
from worker.held import Held
from worker.intake import Intake
from worker.vitals import Vitals

_log = logging.getLogger("penstock.worker")
_STATUS_EVERY_S = 30.0
_LAST_WORD_S = 30.0
"""How long the heartbeat of a worker that failed stands, so that people and launchers can read why."""
_CLOSE_S = 15.0
"""How long an engine may take to close; its process dies with ours anyway."""
_LAST_TRY_S = 5.0
"""How long a worker that ends tries to say so to a Redis that is away."""


def new_worker_id() -> str:
    """An id for one incarnation of a worker: never used again."""
    return f"w-{secrets.token_hex(4)}"


class Worker:
    """One incarnation after another of a worker; `run` returns the process's exit code."""

    def __init__(self, settings: Settings, engine: Engine, gpus: Gpus, queue: Queue, inbox: Queue, fleet: Fleet) -> None:
        self._settings = settings.worker
        self._engine = engine
        self._queue = queue
        self._fleet = fleet
        self.id = new_worker_id()
        self.state = WorkerState.STARTING
        self._info: EngineInfo | None = None
        self._held = Held()
        self._vitals = Vitals(settings.worker, gpus)
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = asyncio.Event()
        self._at_once = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._intake = Intake(queue, inbox, engine, self._held, on_tokens=self._vitals.meter.count, on_crash=self._see_dead)
        self._crashed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._heart = Heart(
            queue,
            fleet,
            self._held,
            Steps(self._count_steps, queue.rules.lease_ms / 1000, self._see_hung),
            say=self._say,
            offer=self._offer,
            on_barred=self._new_incarnation,
            on_return=lambda: self._spawn(self._publish()),
            every_s=self._settings.heartbeat_s,
            ttl_s=self._settings.heartbeat_ttl_s,
        )

    def drain(self) -> None:
        """Take no more and finish what is held; a second call: stop now."""
        if self._draining.is_set():
            self._at_once.set()
        self._draining.set()

    async def run(self) -> int:
        """Start, work, drain. 0 after a drain, 1 when the engine could not start or died."""
        beating = asyncio.create_task(self._heart.run())
        try:
            info = await self._start()
            if info is None:
                return 1 if self._vitals.error else 0
            return await self._work(info)
        finally:
            await _cancelled(beating, *self._tasks)
            await self._intake.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._engine.close(), _CLOSE_S)
            if self._vitals.error:
                await _last_try(lambda: self._fleet.beat(self._say(), int(_LAST_WORD_S * 1000)))
            else:
                await _last_try(lambda: self._fleet.leave(self.id))

    # ---- start

    async def _start(self) -> EngineInfo | None:
        """The started engine; None when it cannot start, or when there is no use any more."""
        self.state = WorkerState.LOADING
        starting = asyncio.ensure_future(self._engine.start())
        draining = asyncio.ensure_future(self._draining.wait())
        await asyncio.wait({starting, draining}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        if not starting.done():
            await _cancelled(starting)
            return None
        try:
            return starting.result()
        except PenstockError as error:
            self._fail(f"The engine {self._settings.engine!r} could not start.", error.message, error.hint)
        except Exception as error:
            _log.exception("fail to start the engine")
            self._fail(f"The engine {self._settings.engine!r} could not start.", f"{type(error).__name__}: {error}", "")
        return None

    async def _publish(self) -> None:
        """Publish the model's card, as soon as Redis answers. Again after Redis was away: it may have forgotten."""
        complaint = Complaint("publish the model's card")
        while self._info is not None:
            try:
                await self._fleet.put_card(self._info.card, self._info.tokenizer)
                complaint.worked()
                return
            except STORE_FAULT as error:
                complaint.failed(error)
                await asyncio.sleep(1.0)

    # ---- work

    async def _work(self, info: EngineInfo) -> int:
        self._info = self._vitals.info = info
        await self._until_draining(self._publish())
        if not self._draining.is_set():
            self.state = WorkerState.READY
            await self._heart.beat()
            _log.info("ready", extra=self._story(info))
        self._listening = asyncio.create_task(self._intake.listen(self.id, info))
        reporting = asyncio.create_task(self._report())
        try:
            await self._until_draining(self._crashed)
            if not self._crashed.done():
                await self._drain(info)
            return await self._bury() if self._crashed.done() else 0
        finally:
            await _cancelled(self._listening, reporting)

    async def _report(self) -> None:
        """A line now and then, while there is something to say."""
        while True:
            await asyncio.sleep(_STATUS_EVERY_S)
            if len(self._held):
                used = needed(self._held.holdings())
                _log.info(
                    "work",
                    extra={"running": len(self._held), "kv_tokens": used, "tokens_per_s": round(self._vitals.meter.tokens_per_s)},
                )

    def _new_incarnation(self) -> None:
        """Somebody had evidence that this incarnation is dead: what it held has moved on. Go on as another one."""
        old, self.id = self.id, new_worker_id()
        _log.warning("go on as a new worker: the old id was barred", extra={"worker_id": self.id, "old_worker_id": old})
        for execution in self._held:
            execution.stop("this incarnation was abandoned")
        if self._listening is not None and self._info is not None:
            self._listening.cancel()  # it waits at the old id's inbox
            self._listening = asyncio.create_task(self._intake.listen(self.id, self._info))
        self._spawn(_last_try(lambda: self._fleet.leave(old)))

    # ---- end

    async def _drain(self, info: EngineInfo) -> None:
        """Accept nothing more; finish what is held in time, give back the rest."""
        self.state, self._intake.accepting = WorkerState.DRAINING, False
        _log.info("drain", extra={"worker_id": self.id, "running": len(self._held)})
        await self._heart.beat()
        await self._intake.give_back_the_unread(self.id, info)
        emptied = asyncio.ensure_future(self._held.until_empty())
        at_once = asyncio.ensure_future(self._at_once.wait())
        try:
            limit_s = self._settings.drain_timeout_s
            waiting: set[asyncio.Future[Any]] = {emptied, at_once, self._crashed}
            await asyncio.wait(waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not self._crashed.done():
                for execution in self._held:
                    execution.give_back()
                await asyncio.wait({emptied}, timeout=_LAST_TRY_S)
        finally:
            await _cancelled(emptied, at_once)

    async def _bury(self) -> int:
        """The engine is dead: all it held moves on at once, and this process ends with the evidence."""
        evidence = self._crashed.result()
        await _last_try(lambda: self._queue.abandon(self.id, evidence))
        for execution in self._held:
            execution.stop("the engine died")
        self._fail("The engine died.", evidence, "Its requests go on elsewhere; the launcher starts a new worker.")
        return 1

    def _fail(self, what: str, why: str, to_do: str) -> None:
        self.state = WorkerState.GONE
        self._vitals.error = " ".join(part for part in (what, why) if part)
        sys.stderr.write(f"penstock: {what}\n  why: {why}\n" + (f"  do:  {to_do}\n" if to_do else ""))

    # ---- what it says of itself

    def _offer(self) -> Offer | None:
        if self._info is None or self.state not in (WorkerState.READY, WorkerState.DRAINING):
            return None
        return offer(self._info, self.id, self._held.holdings(), accepting=self.state is WorkerState.READY)

    def _say(self) -> Heartbeat:
        return self._vitals.heartbeat(self.id, self.state, self._held.holdings(), self._engine.progress)

    def _count_steps(self) -> int:
        try:
            return self._engine.steps()
        except EngineDead as error:
            self._see_dead(str(error))
            return -1

    def _see_hung(self, silent_s: float) -> None:
        self._see_dead(f"it made no step for {silent_s:.0f} s")

    def _see_dead(self, evidence: str) -> None:
        if not self._crashed.done():
            self._crashed.set_result(evidence)

    def _story(self, info: EngineInfo) -> dict[str, object]:
        return {
            "worker_id": self.id,
            "model": info.card.name,
            "engine": self._settings.engine,
            "device": info.device,
            "kv_tokens": info.limit_tokens,
            "slots": info.slots,
            "weight": round(info.weight, 1),
        }

    # ---- helpers

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_draining(self, other: Awaitable[object]) -> None:
        """Wait for the other thing, or for the word to drain."""
        waiting = {asyncio.ensure_future(other), asyncio.ensure_future(self._draining.wait())}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await _cancelled(*(w for w in waiting if w is not self._crashed))


async def _last_try(call: Callable[[], Awaitable[object]]) -> None:
    """Do it if Redis answers within a few seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_TRY_S):
            while True:
                try:
                    await call()
                    return
                except STORE_FAULT:
                    await asyncio.sleep(0.1)


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def run(settings: Settings) -> int:
    """Be a worker until SIGTERM (drain) or a second one (now). Blocks; returns the exit code.

    Raises PenstockError for settings that no worker can be made of.
    """
    die_with_parent()
    if not settings.redis.url:
        raise PenstockError("bad_setting", "There is no Redis to work for.", hint="Set redis.url.", param="redis.url")
    engine = engine_for(settings.worker)
    return uvloop.run(_run(settings, settings.redis.url, engine))


async def _run(settings: Settings, url: str, engine: Engine) -> int:
    rules = settings.queue.rules()
    # The blocking read has a connection of its own: nothing ever waits behind it.
    redis, inbox_redis = connect(url), connect(url, max_connections=2)
    try:
        queue, inbox = Queue(redis, rules), Queue(inbox_redis, rules)
        worker = Worker(settings, engine, find_gpus(), queue, inbox, Fleet(redis))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, worker.drain)
        return await worker.run()
    finally:
        await redis.aclose()
        await inbox_redis.aclose()
