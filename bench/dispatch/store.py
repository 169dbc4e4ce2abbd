"""What requests cost the server: CPU with 30 chunks, memory of a waiting one, and how costs grow with the backlog.

`python -m bench.dispatch.store [--server redis] [--chunks 30] [--waiting 1000,100000]`. CPU is of the server's process (INFO
cpu), memory by INFO memory. The scripts are called as workers and gateways call them; no engine, no HTTP. Writes
bench/results/store.md.
"""

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench.stand import product
from dispatch import messages as m
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from tests.servers import binaries, running

_RULES = QueueRules(max_backlog=10**7, worker_seen_ms=10**8, lease_ms=10**8, grant_ms=10**8)
_CHUNK = b'{"text":" and on","tokens":[5,6]}'
_DETAIL = b'{"finish_reason":"stop","usage":{"prompt_tokens":100,"completion_tokens":60,"total_tokens":160}}'
_ROUNDS = 15
_AT_ONCE = 64
_RESULTS = Path(__file__).parents[1] / "results" / "store.md"


class Bench:
    def __init__(self, url: str) -> None:
        self._redis: Any = connect(url)
        self._queue = Queue(self._redis, _RULES)
        self._inbox = "0"

    async def close(self) -> None:
        await self._redis.aclose()

    def _new(self, reader: str = "") -> m.NewRequest:
        asked = m.InferenceRequest(m.new_id(), "demo", m.InputKind.COMPLETION, m.Sampling(64), prompt="w" * 400, cost_tokens=160)
        return m.NewRequest(
            asked.id, "demo", m.encode(asked), asked.kind, 160, deadline_ms=3_600_000, prompt_tokens=100, reader=reader
        )

    async def _cpu_us(self) -> float:
        used = await self._redis.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"]) * 1e6

    async def with_chunks(self, chunks: int, at_once: int) -> float:
        """CPU us a request: enqueue, inbox, begin, so many chunks of which the last comes with finish, feed; median of rounds."""
        await self._redis.flushall()
        await self._queue.park(m.Offer("w", "demo", 10**9, 10**6, 10.0, prefill_weight=50.0))
        self._inbox, feed, rounds = "0", "0", []
        for _ in range(_ROUNDS):
            before = await self._cpu_us()
            await asyncio.gather(*(self._queue.enqueue(self._new("g")) for _ in range(at_once)))
            self._inbox, words = await self._queue.read_inbox("w", self._inbox, block_ms=100)
            grants = [word for word in words if isinstance(word, m.Grant)]
            await asyncio.gather(*(self._queue.begin(grant) for grant in grants))
            for seq in range(1, chunks):
                await asyncio.gather(*(self._queue.append(grant, seq, _CHUNK) for grant in grants))
                feed, _ = await self._queue.read_feed("g", feed, block_ms=1)
            await asyncio.gather(*(self._queue.finish(grant, chunks, _CHUNK, _DETAIL) for grant in grants))
            feed, _ = await self._queue.read_feed("g", feed, block_ms=1)
            await self._queue.trim_feed("g", feed)
            rounds.append((await self._cpu_us() - before) / len(grants))
        return statistics.median(rounds)

    async def memory_of_a_waiting(self, count: int) -> tuple[float, float]:
        """Bytes a waiting request, and of these its input's."""
        await self._redis.flushall()
        await self._queue.sweep()
        before = (await self._redis.info("memory"))["used_memory"]
        await self._enqueue(count)
        each = ((await self._redis.info("memory"))["used_memory"] - before) / count
        return each, float(await self._redis.memory_usage((await self._redis.keys("{s0}:input:*"))[0]))

    async def growth(self, waiting: int) -> tuple[float, float, float]:
        """CPU us of an enqueue that waits, of a pull that takes one, and of a finish whose room takes one, behind so many."""
        await self._redis.flushall()
        await self._enqueue(waiting)
        enqueues, pulls, finishes = [], [], []
        await self._queue.park(m.Offer("w", "demo", 160 * _AT_ONCE, _AT_ONCE, 10.0, prefill_weight=50.0))
        after, words = await self._queue.read_inbox("w", "0", block_ms=100)
        for n in range(_ROUNDS):
            before = await self._cpu_us()
            await self._enqueue(_AT_ONCE)
            middle = await self._cpu_us()
            await asyncio.gather(
                *(self._queue.park(m.Offer(f"w-{n}-{i}", "demo", 160, 1, 10.0, prefill_weight=50.0)) for i in range(_AT_ONCE))
            )
            pulled = await self._cpu_us()
            grants = [word for word in words if isinstance(word, m.Grant)]
            await asyncio.gather(*(self._queue.begin(grant) for grant in grants))
            begun = await self._cpu_us()
            await asyncio.gather(*(self._queue.finish(grant, 1, _CHUNK, _DETAIL) for grant in grants))
            enqueues.append((middle - before) / _AT_ONCE)
            pulls.append((pulled - middle) / _AT_ONCE)
            finishes.append((await self._cpu_us() - begun) / len(grants))
            after, words = await self._queue.read_inbox("w", after, block_ms=100)
        return statistics.median(enqueues), statistics.median(pulls), statistics.median(finishes)

    async def _enqueue(self, count: int) -> None:
        for start in range(0, count, 500):
            await asyncio.gather(*(self._queue.enqueue(self._new()) for _ in range(min(500, count - start))))


async def _measure(url: str, args: argparse.Namespace) -> AsyncIterator[str]:
    bench = Bench(url)
    for at_once in (1, _AT_ONCE):
        cpu_us = await bench.with_chunks(args.chunks, at_once)
        yield f"{args.chunks} chunks, {at_once} at once: {cpu_us:.0f} us of CPU a request"
    each, its_input = await bench.memory_of_a_waiting(5_000)
    yield f"a waiting request: {each:.0f} bytes, {its_input:.0f} of them its input's key: {each - its_input:.0f} beyond it"
    base: tuple[float, ...] = ()
    for waiting in args.waiting:
        found = await bench.growth(waiting)
        base = base or found
        told = (
            f"{what} {us:.0f} us ({us / b:.2f} x)" for what, us, b in zip(("enqueue", "pull", "finish"), found, base, strict=True)
        )
        yield f"{waiting} waiting: {', '.join(told)}"
    await bench.close()


async def _write(url: str, args: argparse.Namespace) -> None:
    lines = []
    async for line in _measure(url, args):
        print(line, flush=True)
        lines.append(f"- {line}")
    command = " ".join(["python -m bench.dispatch.store", *sys.argv[1:]])
    told = (
        f"{os.cpu_count()} cores, {product(args.server)}, medians of {_ROUNDS} rounds; load at the end {os.getloadavg()[0]:.1f}."
    )
    _RESULTS.write_text("\n".join(["# Cost and growth in the server", "", f"`{command}`: {told}", "", *lines]) + "\n")


def main() -> None:
    """Measure on one server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="redis" if "redis" in binaries() else "valkey")
    parser.add_argument("--chunks", type=int, default=30)
    parser.add_argument("--waiting", type=lambda text: [int(n) for n in text.split(",")], default=[1_000, 100_000])
    args = parser.parse_args()
    with running(args.server) as server:
        asyncio.run(_write(server.url, args))


if __name__ == "__main__":
    main()
