"""Workers retired under load: `python -m bench.retire [--requests 1000]`.

Streams over HTTP, so many open at any time, while the pool's bounds are moved between 2 and 4 workers every five seconds: each
time two are drained and ended, or two are started. Told: whether every client had one whole stream, and what it cost.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx

from bench.asking import client, records, submit, told
from bench.scale_watch import Watch, watching
from bench.scaled import GIB, ScaledFleet, scaled_fleet, until
from tests.system.streams import events

POOL = "demo"
LOW, HIGH = 2, 4
EVERY_S = 5.0
_OPEN = 48
_TOKENS = 30


@dataclass
class Stream:
    """One client's: what came, in order. `breaks`: how often its stream closed before the end."""

    request: str = ""
    seqs: list[int] = field(default_factory=list)
    tokens: int = 0
    state: str = ""
    breaks: int = 0

    @property
    def whole(self) -> bool:
        """One stream, every piece once and in order, to a good end."""
        return self.state == "completed" and not self.breaks and self.seqs == list(range(1, len(self.seqs) + 1))


@dataclass
class Retired:
    """What a run left. `retired`: launches told to drain, of which `kept` were needed again before they were empty."""

    streams: list[Stream]
    records: list[dict[str, Any]]
    took_s: float
    moves: int
    retired: int
    kept: int
    drain_s: list[float]
    leftovers: list[str]


def pool() -> dict[str, Any]:
    """Bounds alone decide here: min is moved, and what is above it goes at once."""
    worker = {"engine": "sim", "sim_gpu": "A10", "sim_speed": "0.25", "slots": "16"}
    bounds = {"min": LOW, "max": HIGH, "down_window_s": 0, "idle_timeout_s": 1}
    return {"model": "demo", **bounds, "need_bytes": 20 * GIB, "worker": worker}


async def run(requests: int, every_s: float = EVERY_S, **environment: str) -> Retired:
    """All of it, until the fleet is at zero."""
    async with scaled_fleet({POOL: pool()}, autoscalers=1, agents=3, environment=environment) as fleet, client() as http:
        async with watching(fleet.url, {POOL: POOL}) as watch:
            await until(lambda: _ready(watch) >= LOW, "the first workers", 60)
            began = time.monotonic()
            moves: list[int] = []
            moving = asyncio.create_task(_move(http, fleet, every_s, moves))
            gate = asyncio.Semaphore(_OPEN)

            async def one(number: int) -> Stream:
                async with gate:
                    return await _stream(http, fleet.gateway, number)

            streams = list(await asyncio.gather(*(one(number) for number in range(requests))))
            took_s = time.monotonic() - began
            moving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await moving
            found = await records(http, fleet.gateway, [s.request for s in streams])
            await _set(http, fleet, 0, 0)
            await until(lambda: _is_empty(watch) and not fleet.orphans(), "the fleet to be at zero", 60)
        retired, kept, drains = _drains(watch)
        return Retired(streams, found, took_s, len(moves), retired, kept, drains, list(fleet.orphans().values()))


async def _move(http: httpx.AsyncClient, fleet: ScaledFleet, every_s: float, moves: list[int]) -> None:
    """Up to HIGH and down to LOW, in turns."""
    number = HIGH
    while True:
        await _set(http, fleet, number, number)
        moves.append(number)
        number = LOW + HIGH - number
        await asyncio.sleep(every_s)


async def _set(http: httpx.AsyncClient, fleet: ScaledFleet, least: int, most: int) -> None:
    reply = await http.patch(f"{fleet.gateway}/v1/pools/{POOL}", json={"min": least, "max": most})
    if reply.status_code != 200:
        raise RuntimeError(f"the bounds could not be set: {reply.status_code} {reply.text}")


async def _stream(http: httpx.AsyncClient, gateway: str, number: int) -> Stream:
    body = {"model": "demo", "prompt": f"stream {number}", "max_tokens": _TOKENS, "ignore_eos": True}
    heard = Stream(await submit(http, gateway, body))
    last = ""
    while not heard.state:
        try:
            async for event in events(http, f"{gateway}/v1/requests/{heard.request}/events", last):
                if event.name in ("chunk", "note", "end"):
                    heard.seqs.append(event.seq)
                    last = event.id
                if event.name == "chunk":
                    heard.tokens += len(event.data["tokens"])
                if event.name == "end":
                    heard.state = event.data["state"]
        except httpx.HTTPError:
            pass
        heard.breaks += not heard.state
    return heard


def _ready(watch: Watch) -> int:
    last = watch.last(POOL)
    return last.ready if last else 0


def _is_empty(watch: Watch) -> bool:
    last = watch.last(POOL)
    return last is not None and not last.there and not last.desired


def _drains(watch: Watch) -> tuple[int, int, list[float]]:
    """How many were told to drain, how many of them were kept, and how long each took from being told to being gone."""
    told_at: dict[str, float] = {}
    kept = 0
    spans: list[float] = []
    for at, orders in watch.orders:
        retiring = {name for each in orders.pools for name in each.retiring}
        named = set(orders.launches())
        for name in retiring:
            told_at.setdefault(name, at)
        for name in list(told_at):
            if name not in named:
                spans.append(at - told_at.pop(name))
            elif name not in retiring:
                kept += 1
                told_at.pop(name)
    return len(spans) + kept + len(told_at), kept, sorted(spans)


def table(run: Retired) -> str:
    """For people."""
    whole = sum(1 for stream in run.streams if stream.whole)
    exact = sum(1 for stream in run.streams if stream.tokens == _TOKENS)
    rows: Sequence[tuple[str, str]] = (
        ("streams, at once", f"{len(run.streams)}, {_OPEN}, in {run.took_s:.0f} s"),
        ("bounds moved (every 5 s)", str(run.moves)),
        ("workers told to drain", f"{run.retired}, of which {run.kept} were needed again and kept"),
        ("told to drain until empty, median / worst", f"{_mid(run.drain_s):.1f} / {max(run.drain_s, default=0.0):.1f} s"),
        ("whole streams (never broken, every piece once, in order)", str(whole)),
        (f"streams of exactly {_TOKENS} tokens", str(exact)),
        *((what, str(number)) for what, number in told(run.records).items()),
        (
            "why they went on elsewhere",
            ", ".join(sorted({a["why"] for r in run.records for a in r.get("story", ())})) or "none did",
        ),
        ("worker processes left, at zero", str(len(run.leftovers))),
    )
    return "| agents, 3 hosts, bounds 2 and 4 in turns | |\n|---|---|\n" + "\n".join(f"| {a} | {b} |" for a, b in rows)


def _mid(ordered: Sequence[float]) -> float:
    return ordered[len(ordered) // 2] if ordered else 0.0


async def _main(args: argparse.Namespace) -> int:
    run_of = await run(args.requests)
    print(table(run_of), flush=True)
    ends = told(run_of.records)
    whole = all(stream.whole and stream.tokens == _TOKENS for stream in run_of.streams)
    return 0 if whole and ends["completed"] == args.requests and not ends["charged attempts"] and not run_of.leftovers else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Workers retired under load.")
    parser.add_argument("--requests", type=int, default=1000)
    raise SystemExit(asyncio.run(_main(parser.parse_args())))
