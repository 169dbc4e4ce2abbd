"""Puts signed jobs on RQ's queues. Never here: when somebody should be rung, and what they then do."""

import asyncio
from collections.abc import Mapping
from typing import Any

from autoscaler.jobs.guarded import GuardedQueue
from autoscaler.jobs.payload import Op, Payload, seal
from dispatch.redis_client import connect_blocking

WEBHOOKS = "webhooks"
"""The queue of webhooks: any agent may take them."""

_MOST_WAITING = 8


def host_queue(host: str) -> str:
    """The queue of one host's agent."""
    return f"agent-{host}"


class JobLine:
    """The writing end. Its calls block a thread of their own, never the event loop."""

    def __init__(self, url: str, key: bytes) -> None:
        self._connection = connect_blocking(url)
        self._key = key

    async def ring(self, host: str, epoch: int, *, ttl_s: float = 30.0) -> str | None:
        """Tell a host's agent to look at its orders. None: it was told often enough, and has not looked yet."""
        return await asyncio.to_thread(self._ring, host, epoch, ttl_s)

    async def put(
        self,
        queue: str,
        op: Op,
        *,
        host: str = "",
        epoch: int = 0,
        body: Mapping[str, Any] | None = None,
        ttl_s: float,
        job_id: str | None = None,
    ) -> str:
        """Put a job on a queue, for `ttl_s`; returns its id. A `job_id` that is given again replaces what is stored under it."""
        return await asyncio.to_thread(self._put, queue, op, host, epoch, body, ttl_s, job_id)

    async def waiting(self, queue: str) -> int:
        """How many jobs wait in a queue; those that have expired meanwhile count until somebody takes them."""
        return await asyncio.to_thread(self._queue(queue).__len__)

    async def close(self) -> None:
        """Let go of the connections."""
        await asyncio.to_thread(self._connection.close)

    def _queue(self, name: str) -> GuardedQueue:
        return GuardedQueue(name, connection=self._connection)

    def _ring(self, host: str, epoch: int, ttl_s: float) -> str | None:
        # An agent that is away must not find a heap when it comes back, nor a queue grow for one that never does.
        if len(self._queue(host_queue(host))) >= _MOST_WAITING:
            return None
        return self._put(host_queue(host), Op.RECONCILE, host, epoch, None, ttl_s, None)

    def _put(
        self, queue: str, op: Op, host: str, epoch: int, body: Mapping[str, Any] | None, ttl_s: float, job_id: str | None
    ) -> str:
        # The server's clock: those of hosts differ.
        seconds, micros = self._connection.time()
        expires_at_ms = int(seconds * 1000 + micros // 1000 + ttl_s * 1000)
        sealed = seal(Payload(op, host, epoch, expires_at_ms, body or {}), self._key)
        job = self._queue(queue).enqueue_call(
            op.value,
            args=(sealed,),
            description=op.value,  # RQ's own would tell the arguments
            ttl=max(1, int(ttl_s)),
            result_ttl=600,
            failure_ttl=86_400,
            job_id=job_id,
        )
        return str(job.id)
