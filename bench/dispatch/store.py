"""What a request costs the server: CPU and commands with 30 chunks, and memory while it waits, runs and after its end.

`python -m bench.dispatch.store [--server redis] [--chunks 30]`. CPU is of the server's process (INFO cpu), memory by INFO memory.
The scripts are called as workers and gateways call them; no engine, no HTTP. How costs grow is for bench/growth. Writes
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
        self._inbox, self._feed = "0", "0"

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
        await self._fresh()
        rounds = []
        for _ in range(_ROUNDS):
            before = await self._cpu_us()
            await self._whole(chunks, at_once)
            rounds.append((await self._cpu_us() - before) / at_once)
        return statistics.median(rounds)

    async def _fresh(self, *, parked: bool = True) -> None:
        await self._redis.flushall()
        self._inbox, self._feed = "0", "0"
        if parked:
            await self._park()

    async def _park(self) -> None:
        await self._queue.park(m.Offer("w", "demo", 10**9, 10**6, 10.0, prefill_weight=1e9))

    async def _granted(self) -> list[m.Grant]:
        self._inbox, words = await self._queue.read_inbox("w", self._inbox, block_ms=100)
        return [word for word in words if isinstance(word, m.Grant)]

    async def _whole(self, chunks: int, at_once: int) -> None:
        """So many requests from their beginning to their end, each step of all together."""
        await asyncio.gather(*(self._queue.enqueue(self._new("g")) for _ in range(at_once)))
        grants = await self._granted()
        await asyncio.gather(*(self._queue.begin(grant) for grant in grants))
        for seq in range(1, chunks):
            await asyncio.gather(*(self._queue.append(grant, seq, _CHUNK) for grant in grants))
            self._feed, _ = await self._queue.read_feed("g", self._feed, block_ms=1)
        await asyncio.gather(*(self._queue.finish(grant, chunks, _CHUNK, _DETAIL) for grant in grants))
        self._feed, _ = await self._queue.read_feed("g", self._feed, block_ms=1)
        await self._queue.trim_feed("g", self._feed)

    async def commands(self, chunks: int, at_once: int) -> tuple[float, float, float]:
        """A request of one chunk: how many calls of scripts, and commands with theirs; and commands of each further chunk."""

        async def counted(count: int) -> tuple[float, float]:
            await self._redis.config_resetstat()
            await self._whole(count, at_once)
            stats = await self._redis.info("commandstats")
            own = ("cmdstat_info", "cmdstat_config|resetstat")
            calls = {name: float(row["calls"]) for name, row in stats.items() if name not in own}
            fcalls = calls.pop("cmdstat_fcall")
            return fcalls / at_once, sum(calls.values()) / at_once

        await self._fresh()
        await self._whole(1, at_once)  # loads the functions
        (fcalls, short), (_, long) = await counted(1), await counted(chunks)
        return fcalls, short, (long - short) / (chunks - 1)

    async def memory(self, count: int, chunks: int) -> dict[str, float]:
        """Bytes of a request that waits, that runs and has said some chunks, and that ended."""
        await self._fresh(parked=False)
        await self._queue.sweep()
        found, before = {}, await self._used_bytes()
        await self._enqueue(count)
        found["waiting"] = (await self._used_bytes() - before) / count
        found["input"] = float(await self._redis.memory_usage((await self._redis.keys("{s0}:input:*"))[0]))
        await self._park()
        grants = await self._granted()
        while len(grants) < count:
            grants += await self._granted()
        await asyncio.gather(*(self._queue.begin(grant) for grant in grants))
        for seq in range(1, chunks):
            await asyncio.gather(*(self._queue.append(grant, seq, _CHUNK) for grant in grants))
        found["running"] = (await self._used_bytes() - before) / count
        await asyncio.gather(*(self._queue.finish(grant, chunks, _CHUNK, _DETAIL) for grant in grants))
        found["ended"] = (await self._used_bytes() - before) / count
        return found

    async def _used_bytes(self) -> int:
        return int((await self._redis.info("memory"))["used_memory"])

    async def _enqueue(self, count: int) -> None:
        for start in range(0, count, 500):
            await asyncio.gather(*(self._queue.enqueue(self._new()) for _ in range(min(500, count - start))))


async def _measure(url: str, args: argparse.Namespace) -> AsyncIterator[str]:
    bench = Bench(url)
    for at_once in (1, _AT_ONCE):
        cpu_us = await bench.with_chunks(args.chunks, at_once)
        yield f"{args.chunks} chunks, {at_once} at once: {cpu_us:.0f} us of CPU a request"
        fcalls, short, each = await bench.commands(args.chunks, at_once)
        yield f"one chunk, {at_once} at once: {fcalls:.2f} calls, {short:.1f} commands a request; each further chunk {each:.1f}"
    held = await bench.memory(5_000, args.chunks)
    beyond = held["waiting"] - held["input"]
    yield f"a waiting request: {held['waiting']:.0f} bytes, {held['input']:.0f} of them its input's key: {beyond:.0f} beyond it"
    yield f"a running one with {args.chunks - 1} chunks: {held['running']:.0f} bytes"
    yield f"after its end, until retention is over: {held['ended']:.0f} bytes"
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
    _RESULTS.write_text("\n".join(["# Cost in the server", "", f"`{command}`: {told}", "", *lines]) + "\n")


def main() -> None:
    """Measure on one server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="redis" if "redis" in binaries() else "valkey")
    parser.add_argument("--chunks", type=int, default=30)
    args = parser.parse_args()
    with running(args.server) as server:
        asyncio.run(_write(server.url, args))


if __name__ == "__main__":
    main()
