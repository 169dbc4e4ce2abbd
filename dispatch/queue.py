"""The queue's laws as typed calls: one method, one script, one transition.

Every write may be repeated after a lost reply. Never here: what to do about an answer (gateway, worker), Lua (scripts/).
"""

import secrets
from collections.abc import AsyncIterator, Callable, Sequence

from redis.asyncio import Redis

from dispatch import messages as m
from dispatch.keys import ShardKeys
from dispatch.rules import QueueRules
from dispatch.states import Priority, RequestState


class Queue:
    """The laws on one shard. `now` fixes the clock for tests (ms); by default only Redis's own clock counts."""

    def __init__(self, redis: Redis, rules: QueueRules, *, shard: str = "s0", now: Callable[[], int] | None = None) -> None: ...

    # ---- clients' side
    async def enqueue(self, new: m.NewRequest) -> m.Enqueued: ...
    async def cancel(self, request: str, reason: str = "cancelled by the client") -> RequestState | None:
        """End it now; the state it ended in (its own, if it had ended before), None if unknown."""
    async def attach(self, request: str, gateway: str, *, after_seq: int = 0, after_chain: str = "") -> m.Attached:
        """Register `gateway` as a reader and return the log after `after_seq`, in one step; then the feed brings the rest.
        `gateway` "" only reads. `after_chain` "" trusts the seq."""
    async def detach(self, request: str, gateway: str, *, then_continue: bool = False) -> None:
        """`gateway` reads it no more. With nobody left and on_disconnect=cancel it is cancelled after the grace;
        `then_continue` turns it into on_disconnect=continue first."""
    async def keep_reading(self, gateway: str) -> None:
        """Renew the reader lease of all that `gateway` reads (call every few seconds), and its feed's TTL."""
    async def read_feed(self, gateway: str, after: str, *, block_ms: int, count: int = 1000) -> tuple[str, list[m.LogEntry | None]]:
        """The feed's entries after stream id `after` ("0" at first), and the id to go on from. A None entry means the
        feed was cut: attach everything anew."""
    async def trim_feed(self, gateway: str, through: str) -> None:
        """Forget what was read."""

    # ---- workers' side
    async def park(self, offer: m.Offer) -> m.Parked: ...
    async def read_inbox(self, worker: str, after: str, *, block_ms: int) -> tuple[str, list[m.Grant | m.Stop]]: ...
    async def begin(self, grant: m.Grant) -> m.Begun | None:
        """Make the grant a full lease; None when fenced. May be repeated."""
    async def append(self, grant: m.Grant, seq: int, data: bytes) -> m.WriteStatus: ...
    async def finish(self, grant: m.Grant, seq: int, last: bytes, detail: bytes, *, state: RequestState = RequestState.COMPLETED) -> m.WriteStatus:
        """End it as completed or failed. `last` is the last chunk's data at `seq` (b"" for none: then `seq` is the last
        one appended + 1 and the end takes it). `detail` is a JSON object merged into the end's data."""
    async def renew(self, worker: str, grants: Sequence[m.Grant]) -> m.Renewed: ...
    async def release(self, grant: m.Grant) -> m.WriteStatus:
        """Give it back unfinished to the head of the line; nothing charged."""
    async def retry(self, grant: m.Grant, code: str, message: str) -> m.WriteStatus:
        """A retryable fault: charged; waits with backoff, or is dead when its attempts are used up."""
    async def abandon(self, worker: str, evidence: str, suspects: Sequence[str] = ()) -> int:
        """The engine or process of this incarnation is dead, by evidence: bar it, move all it held on. Returns how many."""
    async def output(self, request: str) -> list[m.LogEntry]: ...

    # ---- everybody's
    async def sweep(self, limit: int = 200) -> int:
        """Look at every request whose time has come; returns how many were moved."""

    # ---- looking
    async def record(self, request: str) -> m.RequestRecord | None: ...
    async def input(self, request: str) -> m.InferenceRequest | None: ...
    async def tombstone(self, request: str) -> RequestState | None: ...
    async def position(self, record: m.RequestRecord, scan: int = 1000) -> int | None:
        """How many will be looked at before it, + 1; None if not waiting or further back than `scan`."""
    def list_requests(self, *, before_ms: int | None = None) -> AsyncIterator[m.RequestRecord]:
        """Newest first."""
    async def stats(self, model: str) -> m.QueueStats: ...
    async def pause(self, model: str, paused: bool) -> None: ...
    async def purge(self, model: str, priority: Priority | None = None) -> int:
        """Cancel all that waits; returns how many."""
