"""Many open streams on one gateway process: how long a chunk takes from append to client at rising rates, the most chunks it
relays, and what a stream costs in memory. The load (a puppet worker, all the clients) is this one process.

Never here: what is made of the figures.
"""

import asyncio
import contextlib
import re
import resource
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.stand import Stand, cpu_s_of, stand
from bench.streaming.listening import Stream, open_stream
from bench.streaming.puppet import LEASE_S, MODEL, Puppet
from penstock.simulator.report import quantile
from tests.ports import free_port

_SAID = re.compile(rb"@(\d+)@")
_TICK_S = 0.004
_OPEN_AT_ONCE = 32
_MOST_BEHIND = 20_000
"""So many chunks on their way: the rate is far beyond what can be relayed, and is broken off."""
_FULL = 2_000
"""Chunks kept on their way to find out how many are relayed at most."""
_TEXT = b"x" * 20


@dataclass(frozen=True)
class AtRate:
    """One rate. `offered`, `relayed`: chunks/s; spans in ms from just before the append to the client; CPU a chunk."""

    offered: float
    relayed: float
    p50_ms: float
    p99_ms: float
    gateway_us: float
    redis_us: float
    load_us: float


@dataclass(frozen=True)
class Crowd:
    """One number of open streams."""

    streams: int
    opened_per_s: float
    stream_kb: float
    """Resident memory of the gateway, each stream."""
    rates: Sequence[AtRate]
    most: AtRate


@dataclass
class _Ears:
    """All clients."""

    spans: list[int] = field(default_factory=list)

    def heard(self, frames: bytes) -> None:
        found = _SAID.findall(frames)
        if found:
            now = time.monotonic_ns()
            self.spans += [now - int(said) for said in found]


@dataclass
class _House:
    """A gateway, its server, the puppet behind them, and who listens."""

    s: Stand
    port: int
    pid: int
    puppet: Puppet
    ears: _Ears
    streams: list[Stream] = field(default_factory=list)
    turn: int = 0

    async def open(self, count: int) -> float:
        """So many more streams; returns how many a second were opened."""
        began, gate = time.perf_counter(), asyncio.Semaphore(_OPEN_AT_ONCE)

        async def one(n: int) -> None:
            body: dict[str, object] = {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"Stream {n}"}],
                "max_tokens": 4096,
                "stream": True,
            }
            async with gate:
                self.streams.append(await open_stream(self.port, "/v1/chat/completions", body, self.ears.heard))

        await asyncio.gather(*(one(n) for n in range(count)))
        took_s = time.perf_counter() - began
        async with asyncio.timeout(30):
            while len(self.puppet.grants) < len(self.streams):  # noqa: ASYNC110 - to wake somebody at each chunk would be measured
                await asyncio.sleep(0.01)
        return count / took_s

    def say(self, count: int) -> None:
        """The next streams' next chunks."""
        streams = len(self.puppet.grants)
        self.puppet.say([(self.turn + n) % streams for n in range(count)], _TEXT)
        self.turn = (self.turn + count) % streams

    async def caught_up(self, said: int, patience_s: float = 30.0) -> None:
        """Until all of them came."""
        async with asyncio.timeout(patience_s):
            while len(self.ears.spans) < said:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def at(self, rate: float, seconds: float) -> AtRate:
        """Chunks at that rate, each to the next stream; with an infinite one, as fast as they are relayed."""
        self.ears.spans.clear()
        said, began = 0, time.perf_counter()
        before = self._used_s()
        while (now := time.perf_counter() - began) < seconds:
            on_way = said - len(self.ears.spans)
            due = min(int(now * rate), said + 400) - said if rate != float("inf") else min(_FULL - on_way, 200)
            if due > 0:
                self.say(due)
                said += due
            if on_way > _MOST_BEHIND:
                break
            await asyncio.sleep(_TICK_S if rate != float("inf") or on_way > _FULL // 2 else 0)
        took_s, came = time.perf_counter() - began, len(self.ears.spans)
        used_us = [(a - b) * 1e6 / came for a, b in zip(self._used_s(), before, strict=True)]
        await self.caught_up(said)
        spans = sorted(self.ears.spans)
        return AtRate(said / took_s, came / took_s, quantile(spans, 0.5) / 1e6, quantile(spans, 0.99) / 1e6, *used_us)

    def _used_s(self) -> tuple[float, float, float]:
        assert self.s.server is not None
        return cpu_s_of(self.pid), cpu_s_of(self.s.server.pid), time.process_time()


async def measure(server: str, streams: int, rates: Sequence[float], seconds: float) -> Crowd:
    """Open so many, then each rate for that long; a rate far beyond what is relayed is the last."""
    async with _house(server) as house:
        await house.open(20)
        house.say(400)
        await house.caught_up(400)
        empty = _rss_bytes(house.pid)
        opened = await house.open(streams - 20)
        house.ears.spans.clear()
        house.say(2 * streams)
        await house.caught_up(2 * streams)
        stream_kb = (_rss_bytes(house.pid) - empty) / (streams - 20) / 1000
        print(f"{streams} streams: opened at {opened:.0f}/s, {stream_kb:.1f} kB each", file=sys.stderr, flush=True)
        found = []
        for rate in rates:
            found.append(await house.at(rate, seconds))
            print(f"{streams} streams: {found[-1]}", file=sys.stderr, flush=True)
            if found[-1].relayed < 0.8 * rate:
                break
        most = await house.at(float("inf"), seconds)
        print(f"{streams} streams, at most: {most}", file=sys.stderr, flush=True)
        return Crowd(streams, opened, stream_kb, found, most)


def allow(streams: int) -> str:
    """Raise this process's limit of open files, which its children inherit, as far as it goes; why it is not enough, or ""."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = streams + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        if raised < wanted:
            return f"{streams} streams need {wanted} open files; the limit here is {hard} (ulimit -Hn)"
    return ""


@contextlib.asynccontextmanager
async def _house(server: str) -> AsyncIterator[_House]:
    with stand(server) as s:
        port = free_port()
        # By `pull` a worker that answers nothing for so long as all streams take to open would be closed.
        environment = {"PENSTOCK_QUEUE__LEASE_S": str(LEASE_S), "PENSTOCK_QUEUE__STRATEGY": "least_connections"}
        gateway = s.penstock("gateway", "--port", str(port), **environment)
        puppet = Puppet(s.redis_url)
        await puppet.start()
        s.until_answers(f"http://127.0.0.1:{port}/v1/models/{MODEL}")
        house = _House(s, port, gateway.pid, puppet, _Ears())
        try:
            yield house
        finally:
            for stream in house.streams:
                stream.close()
            await puppet.stop()


def _rss_bytes(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024
