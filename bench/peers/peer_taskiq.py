"""taskiq-redis: the stream broker with acknowledgements, the async result backend; a call looks for its result every 2 ms."""

import os
from typing import Any

from taskiq.cli.worker.args import WorkerArgs
from taskiq.cli.worker.run import run_worker
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

URL = os.environ["PEER_REDIS"]
broker = RedisStreamBroker(URL).with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60))
_started = False


@broker.task(task_name="noop")
async def noop(body: str) -> str:
    return "done"


def work() -> None:
    run_worker(WorkerArgs(broker="peer_taskiq:broker", modules=[], workers=1, log_level="ERROR", max_async_tasks=512))


async def call() -> None:
    global _started
    if not _started:
        _started = True
        await broker.startup()
    task: Any = await noop.kiq("w" * 400)
    result = await task.wait_result(check_interval=0.002, timeout=30)
    assert result.return_value == "done"
