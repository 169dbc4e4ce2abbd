"""RQ: one SimpleWorker (no fork a job); a call waits for `latest_result`, a blocking read of the result stream."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from redis import Redis
from rq import Queue, SimpleWorker

URL = os.environ["PEER_REDIS"]


def noop(body: str) -> str:
    return "done"


def work() -> None:
    SimpleWorker(["bench"], connection=Redis.from_url(URL)).work(logging_level="WARNING")


_connection = Redis.from_url(URL, max_connections=2_000)
_queue = Queue("bench", connection=_connection)
_threads = ThreadPoolExecutor(512)


def _call() -> None:
    job = _queue.enqueue(noop, "w" * 400, result_ttl=60)
    result = job.latest_result(timeout=30)
    assert result is not None and result.return_value == "done"


async def call() -> None:
    await asyncio.get_running_loop().run_in_executor(_threads, _call)
