"""`run`: a worker process, from its settings to its exit code. Never here: what a worker does (worker.py)."""

import asyncio
import signal

import uvloop

from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.garbage import rarely_collect
from dispatch.lengths import Lengths
from dispatch.processes import die_with_parent
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.settings import Settings
from worker.engines.registry import engine_for
from worker.gpu import find_gpus
from worker.worker import Worker


def run(settings: Settings) -> int:
    """Be a worker until SIGTERM (drain) or a second one (now). Blocks; returns the exit code.

    Raises PenstockError for settings that no worker can be made of.
    """
    die_with_parent()
    if not settings.redis.url:
        raise PenstockError("bad_setting", "There is no Redis to work for.", hint="Set redis.url.", param="redis.url")
    return uvloop.run(_run(settings, settings.redis.url))


async def _run(settings: Settings, url: str) -> int:
    rules = settings.queue.rules()
    # The blocking read has a connection of its own: nothing ever waits behind it.
    redis, inbox_redis = connect(url), connect(url, max_connections=2)
    try:
        queue = Queue(redis, rules, wait_replica_ms=settings.redis.wait_replica_ms)
        inbox = Queue(inbox_redis, rules)
        worker = Worker(settings, lambda: engine_for(settings.worker), find_gpus(), queue, inbox, Fleet(redis), Lengths(redis))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, worker.drain)
        rarely_collect()
        return await worker.run()
    finally:
        await redis.aclose()
        await inbox_redis.aclose()
