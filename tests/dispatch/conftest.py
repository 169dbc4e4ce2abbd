"""The twin: queue and model side by side on an empty server."""

import pytest
from redis.asyncio import Redis

from tests.dispatch import walks
from tests.dispatch.twin import Twin


@pytest.fixture
def twin(redis: Redis) -> Twin:
    return Twin(redis, walks.RULES)
