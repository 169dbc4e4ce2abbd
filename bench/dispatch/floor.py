"""The raw floor: XADD, XREADGROUP and a reply's XADD, XREAD; no lease, no fence, no log. What no dispatcher on streams undercuts.

`python -m bench.dispatch.floor worker|client URL [mixed|plain]`. Both sides pipeline what gathers, by the client library as it
is. With `mixed` the client sends each command alone and the worker its replies to what it read in one pipeline, as programs on
streams mostly do; with `plain` both send each command alone, over the client library's pool.
"""

import asyncio
import itertools
import sys

import uvloop
from redis.exceptions import ResponseError

from bench.dispatch.loop import serve_rounds
from dispatch.redis_client import connect

_BODY = b"w" * 400


async def work(url: str, plain: bool) -> None:
    redis = connect(url)
    try:
        await redis.xgroup_create("floor:queue", "workers", id="0", mkstream=True)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
    while True:
        found = await redis.xreadgroup("workers", "w-1", {"floor:queue": ">"}, count=100, block=2000, noack=True)
        replies = [
            ("XADD", "floor:replies", "MAXLEN", "~", "10000", "*", "id", fields[b"id"], "d", b"done")
            for _, entries in found or ()
            for _, fields in entries
        ]
        if plain:
            await asyncio.gather(*(redis.execute_command(*reply) for reply in replies))
            continue
        pipe = redis.pipeline(transaction=False)
        for reply in replies:
            pipe.execute_command(*reply)
        await pipe.execute()


def _asking(name: bytes) -> tuple[str | bytes, ...]:
    return ("XADD", "floor:queue", "MAXLEN", "~", "10000", "*", "id", name, "d", _BODY)


class Client:
    def __init__(self, url: str, plain: bool) -> None:
        self._plain = plain
        self._writing, self._reading = connect(url), connect(url)
        self._asked: list[bytes] = []
        self._fresh = asyncio.Event()
        self._ends: dict[bytes, asyncio.Future[None]] = {}
        self._ids = itertools.count()

    async def read(self) -> None:
        after = b"$"
        while True:
            for _, entries in await self._reading.xread({"floor:replies": after}, count=1000, block=2000) or ():
                for after, fields in entries:  # noqa: B007 - where to go on
                    end = self._ends.pop(fields[b"id"], None)
                    if end is not None:
                        end.set_result(None)

    async def call(self) -> None:
        name = b"%d" % next(self._ids)
        end = self._ends[name] = asyncio.get_running_loop().create_future()
        if self._plain:
            await self._writing.execute_command(*_asking(name))
        else:
            self._asked.append(name)
            self._fresh.set()
        await end

    async def write(self) -> None:
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            asked, self._asked = self._asked, []
            pipe = self._writing.pipeline(transaction=False)
            for name in asked:
                pipe.execute_command(*_asking(name))
            await pipe.execute()


async def _client(url: str, plain: bool) -> None:
    client = Client(url, plain)
    tasks = [asyncio.create_task(client.read()), asyncio.create_task(client.write())]
    await asyncio.sleep(0.2)
    await serve_rounds(client.call)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    role, url, *how = sys.argv[1:]
    uvloop.run(work(url, how == ["plain"]) if role == "worker" else _client(url, bool(how)))
