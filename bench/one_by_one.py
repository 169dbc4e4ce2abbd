"""What the scripts of one request take inside the server, one request at a time: with one parked worker and with 1,000, by turns.

`python -m bench.one_by_one [--workers 1000] [--requests 300] [--turns 3]`, on every server found. Unlike bench.thousand nothing
else goes on meanwhile, so there is no idle cost to take off.
"""

import argparse
import asyncio
from typing import Any

from dispatch import messages as m
from dispatch.keys import ShardKeys
from dispatch.queue import Queue
from dispatch.records import plain_fields
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from tests.servers import binaries, running

_INPUT = m.encode(m.InferenceRequest("bench", "demo", m.InputKind.CHAT, m.Sampling(16)))
_CHUNK = b'{"text":" and the water goes on","tokens":[5,6,7,8,9,10]}'
_RULES = QueueRules(worker_seen_ms=10**8)
_STEPS = ("enqueue", "begin", "append", "finish")


async def _used_usec(redis: Any) -> int:
    return int((await redis.info("commandstats"))["cmdstat_fcall"]["usec"])


async def measure(url: str, workers: int, requests: int) -> list[float]:
    """Microseconds of each step."""
    redis: Any = connect(url)
    queue = Queue(redis, _RULES)
    await redis.flushall()
    for n in range(workers):
        await queue.park(m.Offer(f"w-{n:04d}", "demo", 10**9, 10**6, 1_000.0, prefill_weight=1e9))
    took = [0] * len(_STEPS)
    for _ in range(requests):
        new = m.NewRequest(m.new_id(), "demo", _INPUT, m.InputKind.CHAT, 128, deadline_ms=600_000, prompt_tokens=100)
        marks = [await _used_usec(redis)]
        await queue.enqueue(new)
        marks.append(await _used_usec(redis))
        stored = plain_fields(await redis.hgetall(ShardKeys("s0").request(new.id)))
        grant = m.Grant(new.id, stored["worker"], int(stored["attempt"]), stored["nonce"], 128, "")
        await queue.begin(grant)
        marks.append(await _used_usec(redis))
        await queue.append(grant, 1, _CHUNK)
        marks.append(await _used_usec(redis))
        await queue.finish(grant, 2, _CHUNK, b'{"finish_reason":"stop"}')
        marks.append(await _used_usec(redis))
        took = [sum_ + after - before for sum_, before, after in zip(took, marks, marks[1:], strict=False)]
    await redis.aclose()
    return [sum_ / requests for sum_ in took]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    print(f"| server | workers | {' | '.join(f'{step}, us' for step in _STEPS)} | all four | against 1 worker |\n{'|---' * 8}|")
    for name in binaries():
        with running(name) as server:
            for _ in range(args.turns):
                one = 0.0
                for workers in (1, args.workers):
                    took = asyncio.run(measure(server.url, workers, args.requests))
                    one = one or sum(took)
                    cells = " | ".join(f"{usec:.0f}" for usec in took)
                    print(f"| {name} | {workers} | {cells} | {sum(took):.0f} | {sum(took) / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
