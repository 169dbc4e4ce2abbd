"""The closed loop that measures every contestant: so many requests in flight, each followed by the next, for some seconds.

Runs in the peers' environments as well, so it stands on the standard library alone. Never here: what a request is.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

Call = Callable[[], Awaitable[None]]


async def closed_loop(call: Call, in_flight: int, seconds: float) -> dict[str, float]:
    """Requests/s and spans in ms, after a warm-up of a fifth of the time."""
    spans: list[float] = []
    counting_from = time.perf_counter() + seconds / 5
    until = counting_from + seconds

    async def keep_one_open() -> None:
        while (sent_at := time.perf_counter()) < until:
            await call()
            ended_at = time.perf_counter()
            if counting_from <= ended_at < until:
                spans.append(ended_at - sent_at)

    await asyncio.gather(*(keep_one_open() for _ in range(in_flight)))
    return figures(spans, seconds)


def figures(spans: list[float], seconds: float) -> dict[str, float]:
    """What is told of a round."""
    spans.sort()
    if not spans:
        return {"rate": 0.0, "p50_ms": 0.0, "p99_ms": 0.0}
    return {
        "rate": len(spans) / seconds,
        "p50_ms": spans[len(spans) // 2] * 1000,
        "p99_ms": spans[min(len(spans) - 1, len(spans) * 99 // 100)] * 1000,
    }


async def serve_rounds(call: Call) -> None:
    """Be told of rounds on standard input, `<in flight> <seconds>` a line, and answer each with a line of JSON."""
    await call()
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, input_line):
        in_flight, seconds = line.split()
        print(json.dumps(await closed_loop(call, int(in_flight), float(seconds))), flush=True)


def input_line() -> str:
    """The next line, "" at the end."""
    try:
        return input()
    except EOFError:
        return ""
