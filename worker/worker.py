"""A worker: start the engine, beat, take what was granted, drain. One of them is one process, and outlives its engines.

Never here: one request's work (execution.py), what fits (admission.py), the beat itself (heartbeat.py).
"""

import asyncio
import logging
import secrets
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.lengths import Lengths, tell
from dispatch.messages import Offer
from dispatch.queue import Queue
from dispatch.reports import Heartbeat
from dispatch.settings import Settings
from dispatch.states import WorkerState
from dispatch.tasks import cancelled
from worker.admission import holds_at_once, needed
from worker.asked import AskedToDrain
from worker.burial import LAST_TRY_S, abandon, last_try, suspects_of
from worker.engine_room import EngineRoom, NoEngine
from worker.engines.base import Engine
from worker.gpu import Gpus
from worker.health import Health, Sick
from worker.heartbeat import Complaint, Heart, Steps
from worker.held import Beside, Held
from worker.intake import Intake
from worker.learned import Learned
from worker.life import Death, Life
from worker.measured import Measured
from worker.placing import Place
from worker.vitals import Vitals

_T = TypeVar("_T")
_log = logging.getLogger("penstock.worker")
_OFFERING = (WorkerState.READY, WorkerState.QUARANTINED, WorkerState.DRAINING)
_STATUS_EVERY_S = 30.0
_LAST_WORD_S = 30.0
"""How long the heartbeat of a worker that failed stands, so that people and launchers can read why."""


def new_worker_id() -> str:
    """An id for one incarnation of a worker: never used again."""
    return f"w-{secrets.token_hex(4)}"


class Worker:
    """One incarnation after another of a worker, on one engine after another; `run` returns the process's exit code.

    `make` builds an engine that is not started.
    """

    def __init__(
        self,
        settings: Settings,
        make: Callable[[], Engine],
        gpus: Gpus,
        queue: Queue,
        inbox: Queue,
        fleet: Fleet,
        lengths: Lengths | None = None,
    ) -> None:
        self._settings = settings.worker
        self._queue = queue
        self._fleet = fleet
        self._lengths = lengths
        self.id = new_worker_id()
        self.state = WorkerState.STARTING
        self._life: Life | None = None
        self._held = Held()
        self._measured = Measured(settings.worker, gpus)
        self._vitals = Vitals(settings.worker, self._measured)
        self._held.holds_tokens = self._holds_tokens
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = asyncio.Event()
        self._at_once = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._health = Health(self._held, after_s=self._settings.probe_after_s, timeout_s=self._settings.probe_timeout_s)
        self._room = EngineRoom(
            make,
            self._settings.engine,
            self._health,
            Place(settings.worker, gpus),
            most_failures=self._settings.engine_failures,
        )
        self._learned = Learned()
        self._intake = Intake(
            queue,
            inbox,
            self._held,
            on_tokens=self._count_tokens,
            on_completed=self._room.completed,
            on_ended=self._learned.ended,
            around=Beside(self._held, largest_tokens=self._largest_tokens, before_move=lambda: self._heart.park_now()),
        )
        self._asked = AskedToDrain(fleet, lambda: (self.id, self._settings.launch), self._drain_or_not)
        self._steps = Steps(self._count_steps, self._see_hung, longest_gap_s=2 * self._settings.heartbeat_s)
        self._heart = Heart(
            queue,
            fleet,
            self._held,
            self._steps,
            say=self._say,
            offer=self._offer,
            on_barred=self._new_incarnation,
            on_return=lambda: self._spawn(self._publish()),
            besides=(self._learn, self._asked.look),
            every_s=self._settings.heartbeat_s,
            ttl_s=self._settings.heartbeat_ttl_s,
        )

    def drain(self) -> None:
        """Take no more and finish what is held; a second call: stop now."""
        if self._draining.is_set():
            self._at_once.set()
        self._draining.set()

    async def run(self) -> int:
        """Start, work, replace dead engines, drain. 0 after a drain, 1 when no engine would start or stay alive."""
        beating = asyncio.create_task(self._heart.run())
        try:
            await self._live()
        except NoEngine as error:
            self._fail(error)
        finally:
            await self._end(beating)
        return int(self.state is WorkerState.GONE)

    async def _live(self) -> None:
        """One engine after another. Returns after a drain. Raises NoEngine."""
        self.state = WorkerState.LOADING
        started = await self._unless_draining(self._room.first())
        while started is not None:
            life, sick = started
            await self._work(life, sick)
            if not life.died.done() or self.state is WorkerState.QUARANTINED:
                return
            death = life.died.result()
            await self._bury(death)
            if self._draining.is_set():
                raise NoEngine("The engine died while it drained.", death.evidence, "")
            started = await self._unless_draining(self._room.next(death))

    async def _publish(self) -> None:
        """Publish the model's card, as soon as Redis answers. Again after Redis was away: it may have forgotten."""
        complaint = Complaint("publish the model's card")
        while (life := self._life) is not None:
            try:
                await self._fleet.put_card(life.info.card, life.info.tokenizer, publisher=self.id)
                complaint.worked()
                return
            except STORE_FAULT as error:
                complaint.failed(error)
                await asyncio.sleep(1.0)

    # ---- work

    async def _work(self, life: Life, sick: Sick | None) -> None:
        """Until a drain is over or the engine is dead."""
        self._life, self._vitals.info = life, life.info
        self._measured.look(life.engine, life.info)
        self._steps.hang_s = life.hang_s(self._settings.hang_s)
        try:
            await self._unless_draining(self._publish())
        except PenstockError as error:
            raise NoEngine("The model's card cannot be published.", error.message, error.hint) from error
        if not self._draining.is_set() and not life.died.done():
            self._take_or_not()
            if sick is not None:
                self._quarantine(sick)
            await self._heart.beat()
            _log.info(self.state.value, extra=self._story(life))
        self._listening = asyncio.create_task(self._intake.listen(self.id, life))
        helpers = (asyncio.create_task(self._report()), asyncio.create_task(self._watch_health(life)))
        try:
            await self._until_draining(life.died, unless=lambda: self.state is WorkerState.QUARANTINED)
            if self._draining.is_set() and not life.died.done():
                await self._drain(life)
        finally:
            await cancelled(self._listening, *helpers)

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

    async def _watch_health(self, life: Life) -> None:
        """While it works well."""
        if self.state is not WorkerState.QUARANTINED:
            sick = await self._health.watch(life.engine)
            if not sick.garbage:
                life.see_dead(Death(sick.why, own_fault=False, hung=True))
            elif not self._draining.is_set():
                self._quarantine(sick)
                await self._heart.beat()

    def _take_or_not(self) -> None:
        """Ready, or draining where somebody asked it to: that can be taken back."""
        self.state = WorkerState.DRAINING if self._asked.asked else WorkerState.READY
        self._intake.accepting = not self._asked.asked

    def _drain_or_not(self) -> None:
        life = self._life
        if life is None or self._draining.is_set() or self.state not in (WorkerState.READY, WorkerState.DRAINING):
            return  # it looks again when it is ready
        self._take_or_not()
        self._spawn(self._heart.park_now())

    def _quarantine(self, sick: Sick) -> None:
        """What this engine says is wrong, and so would a new one's be on this device. People must look at it."""
        self.state, self._intake.accepting = WorkerState.QUARANTINED, False
        self._vitals.error = sick.why
        _log.error("go into quarantine", extra={"worker_id": self.id, "why": sick.why})
        for execution in self._held:
            execution.give_back()

    def _new_incarnation(self, barred: str) -> None:
        """Somebody had evidence that this incarnation is dead: what it held has moved on. Go on as another one."""
        if barred != self.id:
            return  # an answer to a beat of the one before
        old, self.id = self.id, new_worker_id()
        _log.warning("go on as a new worker: the old id was barred", extra={"worker_id": self.id, "old_worker_id": old})
        for execution in self._held:
            execution.stop("this incarnation was abandoned")
        if self._listening is not None and self._life is not None:
            self._spawn(cancelled(self._listening))  # it waits at the old id's inbox
            self._listening = asyncio.create_task(self._intake.listen(self.id, self._life))
        self._spawn(last_try(lambda: self._fleet.leave(old)))

    # ---- end

    async def _drain(self, life: Life) -> None:
        """Accept nothing more; finish what is held in time, give back the rest."""
        self.state, self._intake.accepting = WorkerState.DRAINING, False
        _log.info("drain", extra={"worker_id": self.id, "running": len(self._held)})
        await self._heart.beat()
        await self._intake.give_back_the_unread(self.id, life)
        emptied = asyncio.ensure_future(self._held.until_empty())
        at_once = asyncio.ensure_future(self._at_once.wait())
        try:
            limit_s = self._settings.drain_timeout_s
            waiting: set[asyncio.Future[Any]] = {emptied, at_once, life.died}
            await asyncio.wait(waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not life.died.done():
                for execution in self._held:
                    execution.give_back()
                await asyncio.wait({emptied}, timeout=LAST_TRY_S)
        finally:
            await cancelled(emptied, at_once)

    async def _bury(self, death: Death) -> None:
        """The engine is dead: all it held moves on at once, and this incarnation with it."""
        suspects = await suspects_of(self._held, death)
        old, self.id = self.id, new_worker_id()
        self.state, self._life = WorkerState.LOADING, None
        self._measured.forget()
        for execution in self._held:
            execution.stop("the engine died")
        self._held.clear()
        fields = {"worker_id": self.id, "old_worker_id": old, "evidence": death.evidence, "suspects": len(suspects)}
        _log.error("lose the engine: what it held moves on", extra=fields)
        self._spawn(abandon(self._queue, self._fleet, old, death.evidence, suspects))
        await self._room.bury(death)

    async def _end(self, beating: asyncio.Task[None]) -> None:
        self._life = None
        await cancelled(beating)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_TRY_S)
        await cancelled(*self._tasks)
        await self._intake.close()
        await self._room.close()
        if self.state is WorkerState.GONE:
            await last_try(lambda: self._fleet.beat(self._say(), int(_LAST_WORD_S * 1000)))
        else:
            await last_try(lambda: self._fleet.leave(self.id))

    def _fail(self, error: NoEngine) -> None:
        self.state = WorkerState.GONE
        self._vitals.error = " ".join(part for part in (error.what, error.why) if part)
        sys.stderr.write(f"penstock: {error.what}\n  why: {error.why}\n" + (f"  do:  {error.to_do}\n" if error.to_do else ""))

    # ---- what it says of itself

    def _offer(self) -> Offer | None:
        life = self._life
        if life is None or life.died.done() or self.state not in _OFFERING:
            return None
        accepting = self.state is WorkerState.READY
        return self._measured.offer(
            life.info, self.id, self._held.holdings(), accepting=accepting, cautious=self._held.is_cautious
        )

    def _say(self) -> Heartbeat:
        life = self._life
        if life is not None and not life.died.done():
            self._measured.look(life.engine, life.info)
            self._held.relieve()
        return self._vitals.heartbeat(self.id, self.state, self._held, self._room.progress, self._health.last)

    def _holds_tokens(self) -> int | None:
        """KV tokens that may be held together now; None where that is not ours to say."""
        life = self._life
        if life is None or not life.info.card.moves_overruns:
            return None
        if life.info.pooled:
            return life.info.limit_tokens
        return holds_at_once(life.info, self._measured.room(life.info, self._held.holdings(), cautious=False))

    async def _learn(self) -> None:
        """Tell the fleet how long answers got, where a cost may follow from that."""
        life = self._life
        if self._lengths is not None and life is not None and life.info.card.moves_overruns:
            self._learned.look(e.growth for e in self._held)
            await tell(self._lengths, life.info.card.name, self._learned.counts)

    async def _largest_tokens(self) -> int:
        life = self._life
        card = await self._fleet.card(life.info.card.name) if life is not None else None
        return card.max_cost_tokens if card is not None else 0

    def _count_tokens(self, count: int) -> None:
        self._vitals.meter.count(count)
        self._health.flowed()

    def _count_steps(self) -> int:
        return self._life.steps() if self._life is not None else -1

    def _see_hung(self, silent_s: float, since: float) -> None:
        if self._life is not None:
            self._life.see_dead(Death(f"the engine made no step for {silent_s:.0f} s", hung=True, silent_since=since))

    def _story(self, life: Life) -> dict[str, object]:
        return {
            "worker_id": self.id,
            "model": life.info.card.name,
            "engine": self._settings.engine,
            "device": life.info.device,
            "kv_tokens": life.info.limit_tokens,
            "slots": life.info.slots,
            "weight": round(life.info.weight, 1),
        }

    # ---- helpers

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("fail in the background", extra={"error": str(error)})

    async def _unless_draining(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """What the work returns; None, and it is broken off, when there is no use for it any more."""
        task = asyncio.create_task(work)
        try:
            await self._until_draining(task)
            return task.result() if task.done() else None
        finally:
            await cancelled(task)

    async def _until_draining(self, other: asyncio.Future[Any], unless: Callable[[], bool] = lambda: False) -> None:
        """Wait for the other thing, `unless` it is of no matter any more, or for the word to drain."""
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({other, draining}, return_when=asyncio.FIRST_COMPLETED)
            if unless():
                await draining
        finally:
            draining.cancel()
