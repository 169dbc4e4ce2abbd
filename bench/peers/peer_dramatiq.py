"""Dramatiq: one process with 8 threads, the Redis broker and its result backend; a call waits for `get_result(block=True)`."""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

URL = os.environ["PEER_REDIS"]
_broker = RedisBroker(url=URL)
_broker.add_middleware(Results(backend=RedisBackend(url=URL)))
dramatiq.set_broker(_broker)


@dramatiq.actor(store_results=True)
def noop(body: str) -> str:
    return "done"


def work() -> None:
    from dramatiq.cli import main, make_argument_parser

    sys.exit(main(make_argument_parser().parse_args(["peer_dramatiq", "--processes", "1", "--threads", "8"])))


_threads = ThreadPoolExecutor(512)


def _call() -> None:
    assert noop.send("w" * 400).get_result(block=True, timeout=30_000) == "done"


async def call() -> None:
    await asyncio.get_running_loop().run_in_executor(_threads, _call)
