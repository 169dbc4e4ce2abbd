"""A thread that takes jobs, and comes back after whatever ends RQ's loop. Never here: what jobs do (guarded.py has the list)."""

import logging
import secrets
import threading
from collections.abc import Sequence

from autoscaler.jobs.guarded import Desk, GuardedWorker
from dispatch.redis_client import connect_blocking

_AGAIN_S = 1.0
_LONGEST_S = 15.0
_log = logging.getLogger("penstock.jobs")


class Runner:
    """Works off queues at one desk, in order of the queues given, until `stop`."""

    def __init__(self, url: str, queues: Sequence[str], desk: Desk) -> None:
        self._url = url
        self._queues = list(queues)
        self._desk = desk
        self._ending = threading.Event()
        self._worker: GuardedWorker | None = None
        # A daemon: the process does not wait for a job that hangs.
        self._thread = threading.Thread(target=self._run, name=f"jobs of {','.join(queues)}", daemon=True)

    def start(self) -> None:
        """Take jobs from now on."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Take no more, and wait for the one at hand. Blocks: call it in a thread of its own."""
        self._ending.set()
        if self._worker is not None:
            self._worker.stop()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        wait_s = _AGAIN_S
        while not self._ending.is_set():
            try:
                self._work()
                wait_s = _AGAIN_S
            except Exception as error:
                _log.warning("jobs are not taken", extra={"queues": self._queues, "why": str(error) or type(error).__name__})
                wait_s = min(_LONGEST_S, 2 * wait_s)
            self._ending.wait(wait_s)

    def _work(self) -> None:
        connection = connect_blocking(self._url)
        try:
            name = f"{self._desk.host or 'penstock'}-{secrets.token_hex(4)}"
            self._worker = GuardedWorker(self._queues, self._desk, connection=connection, name=name)
            if not self._ending.is_set():
                self._worker.work()
        finally:
            self._worker = None
            connection.close()
