"""What Redis's client raises, said in our words. The one place outside the client factory that knows its exceptions.

Never here: retries (the callers know what may be repeated), HTTP.
"""

from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from dispatch.errors import PenstockError


class NotReplicated(RedisError):
    """It is so on this server, but not all replicas said in time that they have it. May be asked again: it then waits anew."""


STORE_FAULT: type[Exception] = RedisError
"""Every exception of the client; `as_penstock` tells them apart."""

UNREACHABLE: tuple[type[Exception], ...] = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    ClusterDownError,
)
"""Redis is away for now: what was asked may or may not have happened, and may be asked again."""

# Replies that are plain errors by type, but mean "not now": a script raises them as text, too.
_NOT_NOW = ("LOADING", "READONLY", "MISCONF", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "UNBLOCKED", "BUSY ")
_RETRY_AFTER_S = 2


def is_unreachable(error: Exception) -> bool:
    """Whether Redis is away for now, so that trying again helps."""
    return isinstance(error, UNREACHABLE) or (isinstance(error, ResponseError) and str(error).startswith(_NOT_NOW))


def as_penstock(error: Exception) -> PenstockError:
    """An error of the client as one of ours."""
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in str(error):
        return PenstockError(
            "out_of_memory",
            "Redis is at its memory limit and takes no new requests; running ones go on.",
            hint="Raise Redis's maxmemory, or wait until kept outputs are forgotten.",
            retry_after_s=10,
        )
    if isinstance(error, NotReplicated):
        return PenstockError(
            "not_replicated",
            "Not all replicas have it yet: the request may have been accepted, or may be lost in a failover.",
            hint="Send it again with the same Idempotency-Key, then it is done once; without one it may be done twice.",
            retry_after_s=_RETRY_AFTER_S,
        )
    if is_unreachable(error):
        return PenstockError(
            "redis_unavailable",
            "Redis does not answer, so nothing can be stored or read.",
            hint="Try again in a few seconds; the operator finds the reason in the gateway's log.",
            retry_after_s=_RETRY_AFTER_S,
        )
    return PenstockError("internal_error", "Redis refused a command.", hint="The operator finds the reason in the gateway's log.")
