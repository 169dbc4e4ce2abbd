"""Shared fixtures: a real server, a clean client, the queue and the fleet on it."""

from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from tests.key_leaks import leaking_keys
from tests.servers import RealServer, binaries, running

# How quick examples are made says something of a busy machine, nothing of what is tested.
settings.register_profile("anywhere", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("anywhere")


@pytest.fixture(scope="session", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[RealServer]:
    if request.param not in binaries():
        pytest.skip(f"no {request.param} server here: `make test` installs it (Debian's redis-server needs root and apt)")
    with running(request.param) as found:
        yield found


@pytest.fixture
def server_url(server: RealServer) -> str:
    return server.url


@pytest.fixture
async def redis(server_url: str) -> AsyncIterator[Redis]:
    """A client on an empty server. Afterwards no key may be left that nothing would ever remove."""
    client = connect(server_url)
    await client.flushall()
    yield client
    leaks = await leaking_keys(client)
    await client.aclose()
    assert not leaks, f"keys that nothing will ever remove: {leaks}"


@pytest.fixture
def rules() -> QueueRules:
    return QueueRules()


@pytest.fixture
def queue(redis: Redis, rules: QueueRules) -> Queue:
    return Queue(redis, rules)


@pytest.fixture
def fleet(redis: Redis) -> Fleet:
    return Fleet(redis)
