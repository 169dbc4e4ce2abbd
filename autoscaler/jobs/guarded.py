"""RQ's job, queue and worker, bound to a short list of operations. Nothing that is stored names what is run.

Of a stored job only its payload and RQ's own times and states are believed. Callbacks, dependencies, retries, repeats, rate
limits, meta, RQ's webhooks and its channel of commands to workers are not. A job that is refused ends as failed, with the
reason, where RQ's own tools look. Never here: what the operations do, which thread or process runs them (runner.py).
"""

import json
import logging
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar

from rq import Queue, SimpleWorker
from rq.exceptions import DeserializationError, NoSuchJobError, StopRequested
from rq.job import Job
from rq.timeouts import BaseDeathPenalty
from rq.worker import WorkerStatus

from autoscaler.jobs.payload import MOST_BYTES, JobRefused, Op, Payload, unseal
from dispatch.faults import is_unreachable

_RESULT_KEPT_S = 600
_FAILURE_KEPT_S = 86_400
_TIMEOUT_S = 90
_WORKER_TTL_S = 17  # RQ blocks for 15 s less: so long may the end of a worker take
_BELIEVED = (
    "data",
    "created_at",
    "enqueued_at",
    "started_at",
    "ended_at",
    "last_heartbeat",
    "origin",
    "status",
    "worker_name",
)
_log = logging.getLogger("penstock.jobs")

Handler = Callable[[Payload], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Desk:
    """What jobs are done here: an operation that is not in `handlers` is refused. `key` None: every one is.

    A handler runs in the runner's thread, keeps its own time, and returns what RQ shows as the job's result.
    """

    host: str
    key: bytes | None
    handlers: Mapping[Op, Handler]


class PlainJson:
    """RQ's serializer: JSON, and little of it."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        return json.dumps(value).encode()

    @staticmethod
    def loads(data: bytes) -> Any:
        if len(data) > MOST_BYTES:
            raise JobRefused("The job is too large.")
        return json.loads(data.decode())


class OwnTime(BaseDeathPenalty):
    """No timeouts of RQ's: its signals need a main thread, and its timers interrupt one anywhere. Handlers keep their own."""

    def setup_death_penalty(self) -> None:
        pass

    def cancel_death_penalty(self) -> None:
        pass


class GuardedJob(Job):
    """A job that can do only what stands on its desk."""

    desk: ClassVar[Desk | None] = None
    _refused: JobRefused | None = None

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Take over what may be believed. Never raises for what is stored: the job is then one that will be refused."""
        stored = {name: raw_data.get(name.encode()) for name in _BELIEVED}
        packed = stored["data"]
        if packed is None:
            raise NoSuchJobError("a job without data")
        believed: dict[bytes, bytes] = {name.encode(): value for name, value in stored.items() if value is not None}
        try:
            believed[b"data"] = _inflate(packed)
            super().restore(believed)
        except (JobRefused, ValueError, TypeError, AttributeError, OverflowError) as error:
            refused = error if isinstance(error, JobRefused) else JobRefused("What is stored with the job cannot be read.")
            self._refused = refused
            super().restore({b"data": b"[]"})
        self.timeout = _TIMEOUT_S
        self.result_ttl = _RESULT_KEPT_S
        self.failure_ttl = _FAILURE_KEPT_S

    def _deserialize_data(self) -> None:
        if self._refused is not None:
            raise self._refused
        try:
            super()._deserialize_data()  # type: ignore[no-untyped-call]
        except DeserializationError as error:
            raise JobRefused("What the job carries is not the JSON that it should be.") from error

    @property
    def func(self) -> Handler:
        """From the list, whatever is stored."""
        name = self.func_name
        handlers = self.desk.handlers if self.desk else {}
        for op, handler in handlers.items():
            if name == op.value:
                return handler
        raise JobRefused(f"Only {', '.join(handlers) or 'nothing'} may be asked for here.")

    def _execute(self) -> Any:
        handler = self.func
        desk = self.desk
        assert desk is not None
        if self.instance is not None or self.kwargs or not isinstance(self.args, list | tuple) or len(self.args) != 1:
            raise JobRefused("The job carries something else than one signed text.")
        seconds, micros = self.connection.time()
        now_ms = int(seconds * 1000 + micros // 1000)
        payload = unseal(self.args[0], desk.key, op=str(self.func_name), host=desk.host, now_ms=now_ms)
        return dict(handler(payload))


class GuardedQueue(Queue):
    """A queue of such jobs."""

    job_class = GuardedJob

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "serializer": PlainJson, "death_penalty_class": OwnTime})

    def move_dependents_to_ready(self, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
        """Nothing depends on a job."""
        return {}

    @classmethod
    def _fetch_dequeued_job(
        cls, connection: Any, queue_key: str, job_id: str, *args: Any, **kwargs: Any
    ) -> tuple[Job, Queue] | None:
        """Of one that cannot even be read only its name is known: it is passed over, and the next one taken."""
        try:
            found = super()._fetch_dequeued_job(connection, queue_key, job_id, *args, **kwargs)
        except Exception as error:
            if is_unreachable(error):
                raise
            _log.warning("pass over a job that cannot be read", extra={"queue": queue_key, "why": type(error).__name__})
            return None
        if found is not None:
            found[0].origin = found[1].name  # the registries of another queue are not its affair
        return found


class GuardedWorker(SimpleWorker):
    """Runs jobs one by one in the thread that calls `work`, without forks, signals or commands from outside."""

    queue_class = GuardedQueue
    job_class = GuardedJob
    death_penalty_class = OwnTime

    def __init__(self, queues: list[str], desk: Desk, **kwargs: Any) -> None:
        job_class = type("GuardedJob", (GuardedJob,), {"desk": desk})
        super().__init__(
            queues, **kwargs, job_class=job_class, serializer=PlainJson, worker_ttl=_WORKER_TTL_S, log_job_description=False
        )
        self.log = _QUIET

    def stop(self) -> None:
        """Let it end after the job it is at. For other threads."""
        self._stop_requested = True

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        # RQ itself looks for this only between jobs, and waits for one for ever.
        if self._stop_requested and self.get_state() != WorkerStatus.BUSY:
            raise StopRequested
        super().heartbeat(*args, **kwargs)

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        self.register_birth()  # type: ignore[no-untyped-call]
        self.set_state(WorkerStatus.STARTED)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """RQ would log what the job carried."""
        error = exc_info[1]
        why = str(error) if isinstance(error, JobRefused) else type(error).__name__
        _log.warning("job failed", extra={"job": job.id, "queue": job.origin, "why": why})

    def _install_signal_handlers(self) -> None:
        """They belong to the process, not to this thread."""

    def subscribe(self) -> None:
        """Its channel would let any client of Redis end this process."""

    def unsubscribe(self) -> None:
        """It never subscribed."""

    def procline(self, message: str) -> None:
        """The process is not its own."""

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        self.stop()


_QUIET = logging.getLogger("penstock.jobs.rq")
_QUIET.setLevel(logging.ERROR)


def _inflate(packed: bytes) -> bytes:
    """Unpacked as RQ does it, up to a bound."""
    if len(packed) > MOST_BYTES:
        raise JobRefused("The job is too large.")
    inflating = zlib.decompressobj()
    try:
        data = inflating.decompress(packed, MOST_BYTES + 1)
    except zlib.error:
        return packed
    if len(data) > MOST_BYTES or inflating.unconsumed_tail:
        raise JobRefused("The job is too large unpacked.")
    return data
