"""What a large idle fleet costs a lone request: from its submit to the answer to `begin`, 36 parked workers against one.

`python -m bench.idle [--workers 36] [--rounds 1000]`: two servers, simulated workers in this process, requests by turns.
"""

import argparse
import asyncio
import contextlib

import uvloop

from bench.clients import Crowd
from penstock.simulator.report import quantile
from tests.servers import binaries, running

_WARM_UP = 50
_PAUSE_S = 0.004


async def _by_turns(crowds: list[Crowd], rounds: int) -> None:
    for crowd in crowds:
        await crowd.start()
    for round_ in range(_WARM_UP + rounds):
        for crowd in crowds:
            await crowd.submit()
            await asyncio.sleep(_PAUSE_S)
            if round_ < _WARM_UP:
                crowd.spans.clear()
    for crowd in crowds:
        await crowd.stop()


def main() -> None:
    """Measure on every server at hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=36)
    parser.add_argument("--rounds", type=int, default=1000)
    args = parser.parse_args()
    print(f"| server | 1 worker p50 | p99 | {args.workers} workers p50 | p99 | ratio of p50 |\n|---|---|---|---|---|---|")
    for name in binaries():
        with contextlib.ExitStack() as stack:
            urls = [stack.enter_context(running(name)).url for _ in range(2)]
            crowds = [
                Crowd(url, [f"w-{n:04d}" for n in range(count)]) for url, count in zip(urls, (1, args.workers), strict=True)
            ]
            uvloop.run(_by_turns(crowds, args.rounds))
        one, many = (sorted(crowd.spans) for crowd in crowds)
        cells = " | ".join(f"{quantile(s, q) * 1000:.2f} ms" for s in (one, many) for q in (0.5, 0.99))
        print(f"| {name} | {cells} | {quantile(many, 0.5) / quantile(one, 0.5):.2f} |", flush=True)


if __name__ == "__main__":
    main()
