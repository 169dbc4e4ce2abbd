"""Celery: one worker process with the solo pool (the fastest for a no-op), Redis as broker and result backend, JSON.

`AsyncResult.get` may not be called by many threads of one process: a call looks for its result every 2 ms instead.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from celery import Celery

URL = os.environ["PEER_REDIS"]
app = Celery("bench", broker=URL, backend=URL)
app.conf.update(result_expires=60, task_acks_late=False, worker_prefetch_multiplier=64)


@app.task(name="noop")
def noop(body: str) -> str:
    return "done"


def work() -> None:
    app.worker_main(["worker", "--pool", "solo", "--loglevel", "ERROR", "--without-gossip", "--without-mingle"])


_threads = ThreadPoolExecutor(16)


async def call() -> None:
    loop = asyncio.get_running_loop()
    result = await loop.run_in_executor(_threads, noop.delay, "w" * 400)
    while not await loop.run_in_executor(_threads, result.ready):  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.002)
    assert result.result == "done"
