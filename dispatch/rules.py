"""The numbers of the queue's laws, in one value. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueRules:
    """Spans in milliseconds. Every process of one Penstock must run with the same rules."""

    grant_ms: int = 2_000
    """A grant not begun for this long goes back to the head of the line, uncharged."""
    lease_ms: int = 10_000
    """A begun request not renewed for this long is taken away and charged."""
    worker_seen_ms: int = 3_000
    """A parked pull of a worker not heard of for this long is passed over."""
    reader_lease_ms: int = 30_000
    """A reading gateway not heard of for this long no longer reads."""
    disconnect_grace_ms: int = 5_000
    """How long a request with on_disconnect=cancel lives without a reader."""
    max_backlog: int = 10_000
    """How many requests of one model may wait."""
    retention_ms: int = 900_000
    """How long the output of an ended request is kept."""
    tombstone_ms: int = 86_400_000
    """How long after that its id is still known (410 rather than 404)."""
    dead_ms: int = 7 * 86_400_000
    """How long a dead letter is kept, its input included."""
    webhook_ms: int = 7 * 86_400_000
    """How long an owed webhook is kept that nobody delivers."""
    idempotency_ms: int = 86_400_000
    """How long an idempotency key is remembered."""
    backoff_ms: int = 500
    """First wait after a retryable error; doubles with each charge, with jitter, up to `backoff_max_ms`."""
    backoff_max_ms: int = 30_000
    crash_limit: int = 2
    """A request that was suspect in this many crashes is dead."""
    ageing_ms: int = 30_000
    """This much longer waiting outweighs one priority."""
    patience_ms: int = 15_000
    """For this long a request waits for a busy worker that would serve it much better; then it takes any."""
    pin_ms: int = 5_000
    """After this long without room anywhere, room is kept for a request at one worker."""
    meetings_bytes: int = 512
    """How much is kept of what came of a request where the two lines met."""
    story_bytes: int = 4_096
    """How much is kept of what became of a request's earlier attempts."""
    feed_cap: int = 50_000
    """Entries in a gateway's feed before it is cut and the gateway attaches anew."""
