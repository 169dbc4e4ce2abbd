"""arq: one worker, a call waits for `Job.result`. Both look every 2 ms; the default is every 500 ms."""

import os
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

URL = os.environ["PEER_REDIS"]
_pool: Any = None


async def noop(context: Any, body: str) -> str:
    return "done"


def _settings() -> RedisSettings:
    settings = RedisSettings.from_dsn(URL)
    settings.max_connections = 2_000
    return settings


def work() -> None:
    Worker([noop], redis_settings=_settings(), max_jobs=512, poll_delay=0.002, keep_result=60).run()


async def call() -> None:
    global _pool
    if _pool is None:
        _pool = await create_pool(_settings())
    job = await _pool.enqueue_job("noop", "w" * 400)
    assert await job.result(poll_delay=0.002, timeout=30) == "done"
