"""A worker's inbox: grants become executions, stops end them. It owns the executions' tasks.

Never here: the worker's own life (worker.py), one request's work (execution.py).
"""

import asyncio
import logging
from collections.abc import Callable

from dispatch.faults import STORE_FAULT
from dispatch.messages import Grant, Stop
from dispatch.queue import Queue
from dispatch.redis_client import BLOCK_MS
from dispatch.tasks import cancelled
from worker.execution import Execution
from worker.growth import Around, Growth
from worker.heartbeat import Complaint
from worker.held import Held
from worker.life import Death, Life
from worker.outcome import Completed, Crashed, Failed, Lost, Moved, Outcome

_log = logging.getLogger("penstock.worker")
_PAUSE_S = 0.2


class Intake:
    """Reads while `listen` runs. `inbox` is a Queue on a connection of its own: its read blocks."""

    def __init__(
        self,
        queue: Queue,
        inbox: Queue,
        held: Held,
        *,
        on_tokens: Callable[[int], None],
        on_completed: Callable[[], None],
        around: Around | None = None,
        on_ended: Callable[[Growth], None] = lambda growth: None,
    ) -> None:
        self.accepting = True
        self._queue = queue
        self._inbox = inbox
        self._held = held
        self._on_tokens = on_tokens
        self._on_completed = on_completed
        self._around = around
        self._on_ended = on_ended
        self._read_until = "0"
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, worker: str, life: Life) -> None:
        """Read the inbox of `worker` for ever; what comes runs on the engine of `life`."""
        complaint = Complaint("read the inbox")
        self._read_until = "0"
        while True:
            try:
                self._read_until, words = await self._inbox.read_inbox(worker, self._read_until, block_ms=BLOCK_MS)
                complaint.worked()
            except STORE_FAULT as error:
                complaint.failed(error)
                await asyncio.sleep(_PAUSE_S)
                continue
            for word in words:
                self._hear(word, life)

    async def give_back_the_unread(self, worker: str, life: Life) -> None:
        """Redis grants nothing any more; what it granted just before may still lie in the inbox."""
        try:
            _, words = await self._queue.read_inbox(worker, self._read_until, block_ms=1)
        except STORE_FAULT:
            return  # not begun in time, they go back by themselves
        for word in words:
            self._hear(word, life)

    async def close(self) -> None:
        """Break off what is still at work."""
        await cancelled(*self._tasks)

    def _hear(self, word: Grant | Stop, life: Life) -> None:
        execution = self._held.find(word.request, word.attempt)
        if isinstance(word, Grant):
            if execution is None:
                self._take(word, life)
        elif execution is not None:
            execution.stop(word.reason)

    def _take(self, grant: Grant, life: Life) -> None:
        execution = Execution(
            grant,
            self._queue,
            life.engine,
            life.info,
            until_room=lambda e: self._held.until_room(e, life.info),
            is_busy=self._held.is_busy,
            on_tokens=self._on_tokens,
            around=self._around,
        )
        if not self.accepting:
            execution.give_back()  # it was on its way when we stopped accepting
        self._held.add(execution)
        task = asyncio.create_task(self._execute(execution, life))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _execute(self, execution: Execution, life: Life) -> None:
        grant = execution.grant
        outcome: Outcome | None = None
        try:
            outcome = await execution.run()
        except Exception:
            # Its lease lapses, so the request is safe; but it is a bug.
            _log.exception("fail to write an outcome", extra={"request": grant.request, "attempt": grant.attempt})
            return
        finally:
            self._on_ended(execution.growth)
            # What the engine died under stays held, until the worker has seen who was in there with it.
            if not isinstance(outcome, Crashed):
                self._held.remove(execution)
        if isinstance(outcome, Crashed):
            life.see_dead(Death(outcome.evidence, outcome.own_fault))
        if isinstance(outcome, Completed):
            self._on_completed()
        _note(grant, outcome)


def _note(grant: Grant, outcome: Outcome) -> None:
    level = logging.DEBUG if isinstance(outcome, Completed | Lost) else logging.INFO
    fields: dict[str, object] = {"request": grant.request, "attempt": grant.attempt, "outcome": type(outcome).__name__.lower()}
    if isinstance(outcome, Failed):
        fields["code"] = outcome.code
    if isinstance(outcome, Moved):
        fields |= {"why": outcome.why, "cost_tokens": outcome.cost_tokens}
    _log.log(level, "end an attempt", extra=fields)
