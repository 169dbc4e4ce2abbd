"""THE client factory: every connection to Redis is made here, with explicit timeouts, pool and retry rules."""

from typing import Any

from redis import Redis as Blocking
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.retry import Retry as BlockingRetry
from redis.sentinel import Sentinel

from dispatch.connections import url_arguments
from dispatch.sentinel import SCHEMES, parse_sentinel_url, pool_arguments
from dispatch.wire import Wires

BLOCK_MS = 2_000
"""The longest a blocking read may block: the socket timeout must outlast it by far (facts: a longer block hangs or dies)."""

_SOCKET_TIMEOUT_S = BLOCK_MS / 1000 + 3

_KEPT_WIRES = 3
"""Two lanes of batches and a blocking read. Of a small pool one connection less than all: the client itself needs one."""


class _Pool(BlockingConnectionPool):
    """The client's connections, and those of them that batches keep."""

    wires: Wires


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
    pool = _Pool(**{**limits, **arguments})
    client = Redis.from_pool(pool)  # the pool is its own: closing it closes both
    pool.wires = Wires(client, keep=min(_KEPT_WIRES, max_connections - 1))
    return client


def connect_blocking(url: str, *, block_s: float = BLOCK_MS / 1000) -> Blocking:
    """A client for libraries that block a thread (RQ). `block_s`: the longest they let the server wait for something.

    It retries nothing, as `connect`. Of a Sentinel group it asks for the master with each new connection.
    """
    limits: dict[str, Any] = {
        "socket_timeout": block_s + 10,
        "socket_connect_timeout": 3,
        "retry": BlockingRetry(NoBackoff(), 0),
        "protocol": 2,
    }
    if not url.startswith(SCHEMES):
        return Blocking.from_url(url, **limits)
    parts = parse_sentinel_url(url)
    access = {"username": parts.username, "password": parts.password, "ssl": parts.tls}
    group: Any = Sentinel(  # type: ignore[no-untyped-call]
        list(parts.sentinels), sentinel_kwargs={"password": parts.sentinel_password, "ssl": parts.tls, "socket_timeout": 1.0}
    )
    found: Blocking = group.master_for(parts.service, db=parts.db, **access, **limits)
    return found
