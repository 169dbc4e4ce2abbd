"""THE client factory: every connection to Redis is made here, with explicit timeouts, pool and retry rules."""

from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from dispatch.connections import url_arguments
from dispatch.sentinel import SCHEMES, pool_arguments

BLOCK_MS = 2_000
"""The longest a blocking read may block: the socket timeout must outlast it by far (facts: a longer block hangs or dies)."""

_SOCKET_TIMEOUT_S = BLOCK_MS / 1000 + 3


def connect(url: str, *, max_connections: int = 64) -> Redis:
    """A client with a pool of its own; close it with `aclose()`.

    Nothing is retried in here: a command whose reply was lost may have happened, and only the callers know
    that all our writes are scripts that may be repeated. Replies are bytes. A `redis+sentinel://` URL follows the master.
    """
    limits: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": 5,
        "socket_timeout": _SOCKET_TIMEOUT_S,
        "socket_connect_timeout": 3,
        **({} if url.startswith("unix://") else {"socket_keepalive": True}),
        "health_check_interval": 0,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    arguments = pool_arguments(url) if url.startswith(SCHEMES) else url_arguments(url)
    pool = BlockingConnectionPool(**{**limits, **arguments})
    return Redis.from_pool(pool)  # the pool is its own: closing it closes both
