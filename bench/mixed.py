"""Small and huge requests on a small and a large GPU, live: does anything run out of memory, does anything starve?

`python -m bench.mixed [--requests 10000] [--fleet A10,H200] [--speed 20] [--open 300]`: sizes (prompt + max_tokens) from 10 to
60,000 tokens, even in their logarithm; so many are always open. A third end by themselves, so are priced at what answers
usually need; the others say all of max_tokens.
"""

import argparse
import asyncio
import collections
import itertools
import math
import random
import time
from dataclasses import dataclass
from typing import Any

from bench.live import LiveFleet, live_fleet, prompt_of
from penstock.simulator.fleet import fleet_of
from penstock.simulator.report import quantile

_LEAST, _MOST = 10, 60_000
_BOUNDS = (10, 25, 1_000, 10_000, 42_000, 60_001)
"""Of the classes of sizes. 42,000 is what an A10 holds."""
_WAIT_S = 300


@dataclass(frozen=True)
class Ended:
    """One request's: its size, what the gateway told of its end, its attempts' story."""

    size_tokens: int
    state: str
    wait_ms: int
    why: tuple[str, ...]
    worker: str


def body_of(index: int, rng: random.Random) -> tuple[int, dict[str, Any]]:
    """A request's size, and what is sent."""
    size = min(_MOST, int(math.exp(rng.uniform(math.log(_LEAST), math.log(_MOST + 1)))))
    ends_itself = index % 3 == 0
    answer = max(1, min(size // 2, rng.randint(1, 2_000 if ends_itself else 160)))
    return size, {
        "model": "demo",
        "prompt": prompt_of(size - answer, index),
        "max_tokens": answer,
        "ignore_eos": not ends_itself,
    }


async def one(fleet: LiveFleet, index: int, rng: random.Random) -> Ended:
    """Submit and wait for the end."""
    size, body = body_of(index, rng)
    headers = {"Prefer": f"wait={_WAIT_S}", "X-Penstock-On-Disconnect": "continue"}
    reply = await fleet.client.post(fleet.gateway.url + "/v1/requests", json=body, headers=headers)
    told = reply.json()
    if reply.status_code != 200:
        return Ended(size, f"{reply.status_code} {told.get('status') or told}", 0, (), "")
    why: tuple[str, ...] = ()
    if told["attempts"] > 1:
        record = (await fleet.client.get(f"{fleet.gateway.url}/v1/requests/{told['id']}")).json()
        why = tuple(attempt["why"] for attempt in record["story"])
    return Ended(size, told["status"], told["timing"]["queue_ms"], why, fleet.names.get(told["worker"], ""))


class MemorySamples:
    """What the heartbeats tell of each worker's memory."""

    def __init__(self) -> None:
        self.count, self.over, self.fullest = 0, 0, collections.Counter[str]()

    async def take(self, fleet: LiveFleet) -> None:
        while True:
            for w in await fleet.workers():
                used, limit = w["room"]["used_tokens"], w["limit_tokens"]
                self.count += 1
                self.over += used > limit
                name = fleet.names[w["id"]]
                self.fullest[name] = max(self.fullest[name], round(10_000 * used / limit))
            await asyncio.sleep(0.1)


async def measure(args: argparse.Namespace) -> None:
    rng, todo = random.Random(11), iter(range(args.requests))
    ended: list[Ended] = []
    samples = MemorySamples()
    environment = {"PENSTOCK_WORKER__HEARTBEAT_S": "0.25", "PENSTOCK_QUEUE__RETENTION_S": "60"}
    async with live_fleet(fleet_of(args.fleet), args.speed, **environment) as fleet:
        sampling = asyncio.create_task(samples.take(fleet))
        since = time.monotonic()

        async def client() -> None:
            for index in todo:
                if time.monotonic() > since + args.minutes * 60:
                    return
                ended.append(await one(fleet, index, rng))

        await asyncio.gather(*(client() for _ in range(args.open)))
        took_s = time.monotonic() - since
        sampling.cancel()
        moved = fleet.log_lines("outgrew its cost")
        out_of_memory = fleet.log_lines("ran out of memory")
    report(ended, took_s, samples, moved, out_of_memory)


def report(ended: list[Ended], took_s: float, samples: MemorySamples, moved: int, out_of_memory: int) -> None:
    states = collections.Counter(e.state for e in ended)
    whys = collections.Counter(why for e in ended for why in e.why)
    print(f"{len(ended)} requests in {took_s:.0f} s: {dict(states)}.")
    print(f"Attempts that were not the last: {dict(whys) or 'none'}. Moved before they outgrew the memory (logs): {moved}; "
          f"the sim ran out of memory (logs): {out_of_memory}.")  # fmt: skip
    print(f"{samples.count} heartbeats looked at: {samples.over} over their memory, fullest "
          + ", ".join(f"{name} {part / 100:.1f} %" for name, part in sorted(samples.fullest.items())) + ".\n")  # fmt: skip
    print("| tokens | requests | wait p50 | p99 | p99.9 | longest | by worker |\n|---|---|---|---|---|---|---|")
    for low, high in itertools.pairwise(_BOUNDS):
        some = [e for e in ended if low <= e.size_tokens < high and e.state == "completed"]
        waits = sorted(e.wait_ms / 1000 for e in some)
        if waits:
            cells = " | ".join(f"{quantile(waits, q):.2f} s" for q in (0.5, 0.99, 0.999, 1.0))
            by = collections.Counter(e.worker for e in some)
            print(f"| {low:,}-{high - 1:,} | {len(some)} | {cells} | {', '.join(f'{n} {c}' for n, c in sorted(by.items()))} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleet", default="A10,H200")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--speed", type=float, default=20.0)
    parser.add_argument("--open", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=4.0, help="nothing new after that")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
