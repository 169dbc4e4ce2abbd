"""What each transition costs inside Redis: microseconds a call by INFO commandstats, on every server found.

`python -m bench.laws [--server-url URL]` prints a line each:
parked workers 1, 36, 1,000, with room and with too little; backlog 0, 1,000, 100,000. Then 36 workers at prompts that close them
(docs/decisions/0022) or fill their only slot, with 0, 64 and 10,000 waiting; `--only work` is this alone.
"""

import argparse
import asyncio

import msgspec

from dispatch import messages as m
from dispatch import scores
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from tests.servers import binaries, running

_INPUT = m.encode(m.InferenceRequest("bench", "demo", m.InputKind.CHAT, m.Sampling(16)))
_CHUNK = b'{"text":" and the water goes on","tokens":[5,6,7,8,9,10]}'
_ROUNDS = 500
_FLEET, _TURNS = 36, 14
_CLOSES = 3_000
"""A prompt of 0.6 s at the workers' speed."""


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

    async def at_work(self, waiting: int, slots: int) -> dict[str, float]:
        """Requests on their way, while others wait for a first output (many slots) or an ending (one)."""
        await self._fleet(slots)
        if waiting:
            await self._enqueue(_FLEET + waiting)
        sums = dict.fromkeys(("enqueue", "begin", "append, the first", "append", "finish"), 0.0)
        for _ in range(_TURNS):
            await self._reset()
            await self._enqueue(_FLEET)
            sums["enqueue"] += await self._usec(_FLEET * _TURNS)
            grants = [grant for worker in list(self._inbox)[:_FLEET] for grant in await self._grants(worker)]
            for name, call in (
                ("begin", lambda g: self._queue.begin(g)),
                ("append, the first", lambda g: self._queue.append(g, 1, _CHUNK)),
                ("append", lambda g: self._queue.append(g, 2, _CHUNK)),
                ("finish", lambda g: self._queue.finish(g, 3, _CHUNK, b'{"finish_reason":"stop"}')),
            ):
                await self._reset()
                for grant in grants:
                    await call(grant)
                sums[name] += await self._usec(len(grants) * _TURNS)
        return sums

    async def stays_closed(self, waiting: int) -> dict[str, float]:
        """First outputs of workers that have so many more prompts to do that they take none of those that wait."""
        await self._fleet(slots=10**6)
        await self._enqueue(_FLEET * _TURNS, "least_connections")
        grants = [(await self._grants(worker))[:-1] for worker in list(self._inbox)[:_FLEET]]
        for grant in (each := [g for held in grants for g in held]):
            await self._queue.begin(grant)
        await self._enqueue(waiting)
        await self._reset()
        for grant in each:
            await self._queue.append(grant, 1, _CHUNK)
        return {"append, the first, and it stays closed": await self._usec(len(each))}

    async def _fleet(self, slots: int) -> None:
        await self._redis.flushall()
        for worker in list(self._inbox)[:_FLEET]:
            self._inbox[worker] = "0"
            await self._queue.park(m.Offer(worker, "demo", 10**9, slots, 1_000.0, prefill_weight=_CLOSES / scores.OPEN_S))
        await self._queue.sweep()

    async def _enqueue(self, count: int, strategy: str = "") -> None:
        for start in range(0, count, 1000):
            news = (
                msgspec.structs.replace(self._new(), prompt_tokens=_CLOSES, strategy=strategy)
                for _ in range(min(1000, count - start))
            )
            await asyncio.gather(*(self._queue.enqueue(new) for new in news))

    async def _grants(self, worker: str) -> list[m.Grant]:
        self._inbox[worker], words = await self._queue.read_inbox(worker, self._inbox[worker], block_ms=1)
        return [word for word in words if isinstance(word, m.Grant)]


async def _work(bench: Bench) -> None:
    for waiting in (0, 64, 10_000):
        for name, slots in (("closed", 10**6), ("one slot", 1)):
            row = await bench.at_work(waiting, slots)
            if name == "closed":
                row |= await bench.stays_closed(waiting)
            print(
                f"| {waiting} waiting, {name} | " + ", ".join(f"{law} {usec:.0f} us" for law, usec in row.items()) + " |",
                flush=True,
            )


async def _measure(url: str, only: str | None) -> None:
    bench = Bench(url)
    if only:
        await _work(bench)
        await bench.close()
        return
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
    await _work(bench)
    await bench.close()


def main() -> None:
    """Measure on every server at hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server-url")
    parser.add_argument("--only", choices=["work"])
    args = parser.parse_args()
    if args.server_url:
        asyncio.run(_measure(args.server_url, args.only))
        return
    for name in binaries():
        with running(name) as server:
            print(f"## {name}")
            asyncio.run(_measure(server.url, args.only))


if __name__ == "__main__":
    main()
