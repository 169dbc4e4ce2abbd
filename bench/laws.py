"""What each transition costs inside Redis: microseconds a call by INFO commandstats, on every server found.

`python -m bench.laws [--server-url URL]` prints a line each:
parked workers 1, 36, 1,000, with room and with too little; backlog 0, 1,000, 100,000.
"""

import argparse
import asyncio

from dispatch import messages as m
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from tests.servers import binaries, running

_INPUT = m.encode(m.InferenceRequest("bench", "demo", m.InputKind.CHAT, m.Sampling(16)))
_CHUNK = b'{"text":" and the water goes on","tokens":[5,6,7,8,9,10]}'
_ROUNDS = 500


class Bench:
    def __init__(self, url: str) -> None:
        self._redis = connect(url)
        self._queue = Queue(self._redis, QueueRules(max_backlog=10**7, worker_seen_ms=10**8, lease_ms=10**8, grant_ms=10**8))
        self._inbox = dict.fromkeys([f"w-{n:04d}" for n in range(1000)], "0")

    async def close(self) -> None:
        await self._redis.aclose()

    def _new(self, cost_tokens: int = 100) -> m.NewRequest:
        return m.NewRequest(m.new_id(), "demo", _INPUT, m.InputKind.CHAT, cost_tokens, deadline_ms=3_600_000)

    async def _usec(self, calls: int) -> float:
        stats = await self._redis.info("commandstats")
        return float(stats["cmdstat_fcall"]["usec"]) / calls

    async def _reset(self) -> None:
        await self._redis.config_resetstat()

    async def meet(self, workers: int) -> dict[str, float]:
        """Enqueue onto parked workers, then work each request whole."""
        await self._redis.flushall()
        for worker in list(self._inbox)[:workers]:
            self._inbox[worker] = "0"
            await self._queue.park(m.Offer(worker, "demo", 10**9, 10**6, 10.0))
        await self._queue.sweep()
        figures = {}
        await self._reset()
        for _ in range(_ROUNDS):
            await self._queue.enqueue(self._new())
        figures["enqueue + meet"] = await self._usec(_ROUNDS)
        grants: list[m.Grant] = []
        for worker in list(self._inbox)[:workers]:
            while True:
                self._inbox[worker], words = await self._queue.read_inbox(worker, self._inbox[worker], block_ms=1)
                grants += [w for w in words if isinstance(w, m.Grant)]
                if not words:
                    break
        for name, call in (
            ("begin", lambda g: self._queue.begin(g)),
            ("append", lambda g: self._queue.append(g, 1, _CHUNK)),
            ("renew (1)", lambda g: self._queue.renew("w-none", [g])),
            ("finish", lambda g: self._queue.finish(g, 2, _CHUNK, b'{"finish_reason":"stop"}')),
        ):
            await self._reset()
            for grant in grants:
                await call(grant)
            figures[name] = await self._usec(len(grants))
        return figures

    async def full(self, workers: int) -> dict[str, float]:
        """Enqueue what fits into no parked pull's room."""
        await self._redis.flushall()
        for worker in list(self._inbox)[:workers]:
            await self._queue.park(m.Offer(worker, "demo", 50, 8, 10.0))
        await self._queue.sweep()
        await self._reset()
        for _ in range(_ROUNDS):
            await self._queue.enqueue(self._new())
        return {"enqueue, fits nobody": await self._usec(_ROUNDS)}

    async def backlog(self, waiting: int) -> dict[str, float]:
        """Enqueue behind a backlog, and a worker with room for one that takes from it."""
        await self._redis.flushall()
        for start in range(0, waiting, 1000):
            await asyncio.gather(*(self._queue.enqueue(self._new()) for _ in range(min(1000, waiting - start))))
        figures = {}
        await self._reset()
        for _ in range(_ROUNDS):
            await self._queue.enqueue(self._new())
        figures["enqueue, waits"] = await self._usec(_ROUNDS)
        await self._reset()
        for n in range(_ROUNDS):
            await self._queue.park(m.Offer(f"w-{n}", "demo", 100, 1, 10.0))
        figures["park, takes one"] = await self._usec(_ROUNDS)
        await self._reset()
        for n in range(_ROUNDS):
            await self._queue.park(m.Offer(f"x-{n}", "demo", 99, 8, 10.0))
        figures["park, none fits"] = await self._usec(_ROUNDS)
        return figures


async def _measure(url: str) -> None:
    bench = Bench(url)
    for workers in (1, 36, 1000):
        row = await bench.meet(workers)
        print(f"| {workers} parked | " + ", ".join(f"{name} {usec:.0f} us" for name, usec in row.items()) + " |", flush=True)
    for workers in (1, 36, 1000):
        row = await bench.full(workers)
        print(
            f"| {workers} parked, little room | " + ", ".join(f"{name} {usec:.0f} us" for name, usec in row.items()) + " |",
            flush=True,
        )
    for waiting in (0, 1_000, 100_000):
        row = await bench.backlog(waiting)
        print(f"| {waiting} waiting | " + ", ".join(f"{name} {usec:.0f} us" for name, usec in row.items()) + " |", flush=True)
    await bench.close()


def main() -> None:
    """Measure on every server at hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server-url")
    url = parser.parse_args().server_url
    if url:
        asyncio.run(_measure(url))
        return
    for name in binaries():
        with running(name) as server:
            print(f"## {name}")
            asyncio.run(_measure(server.url))


if __name__ == "__main__":
    main()
