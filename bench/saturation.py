"""Who does what share of the work when all are busy: live `sim` workers, each always full of 32 requests.

`python -m bench.saturation [--fleet GPUS] [--dilate 20] [--seconds 60]`: 32 slots a worker, for a weight is the speed with 32
sequences, and 32 requests more than all slots open, so that some always wait. Tokens are counted as they reach the clients.
"""

import argparse
import asyncio
import collections
import random

from bench.live import LiveFleet, Played, live_fleet
from dispatch.scores import DEFAULT
from penstock.simulator.fleet import fleet_of
from penstock.simulator.trace import Arrival

_SLOTS = 32


class Clients:
    """So many requests, always open."""

    def __init__(self, fleet: LiveFleet, count: int) -> None:
        self.played: list[Played] = []
        self._fleet = fleet
        self._rng = random.Random(5)
        self._tasks = [asyncio.create_task(self._keep_one_open()) for _ in range(count)]

    async def _keep_one_open(self) -> None:
        while True:
            played = Played(Arrival(0.0, self._rng.randint(8, 24), self._rng.randint(20, 60)))
            self.played.append(played)
            await self._fleet.play(played, DEFAULT, len(self.played))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def measure(args: argparse.Namespace) -> None:
    fleet = fleet_of(args.fleet)
    environment = {"PENSTOCK_WORKER__HANG_S": f"{10 * args.dilate:g}", "PENSTOCK_WORKER__SLOTS": str(_SLOTS)}
    seen: collections.Counter[str] = collections.Counter()
    async with live_fleet(fleet, 1 / args.dilate, **environment) as standing:
        clients = Clients(standing, _SLOTS * (len(fleet) + 1))
        await asyncio.sleep(args.seconds / 3)
        loop = asyncio.get_running_loop()
        since = loop.time()
        while loop.time() < since + args.seconds:
            for w in await standing.workers():
                seen["heartbeats"] += 1
                seen["over"] += w["room"]["used_tokens"] > w["limit_tokens"]
                seen["full"] += w["running"] == _SLOTS
            await asyncio.sleep(0.25)
        until = loop.time()
        weights = {standing.names[w["id"]]: w["weight"] for w in await standing.workers()}
        heard = [p for p in clients.played if p.said]
        await standing.look_back(heard)
        await clients.stop()
        said = collections.Counter(dict.fromkeys(weights, 0))
        for p in heard:
            said[standing.name_of(p)] += sum(n for at, n in p.said if since <= at < until)
        seen["overflows"] = standing.log_lines("ran out of memory") + standing.log_lines("outgrew its cost")
    print(
        f"| worker | weight, measured | share of weights | tokens in {until - since:.0f} s | share of tokens | tokens / weight |"
    )
    print("|---|---|---|---|---|---|")
    for name in sorted(weights):
        due, done = weights[name] / sum(weights.values()), said[name] / said.total()
        print(f"| {name} | {weights[name]:.1f} | {due:.1%} | {said[name]} | {done:.1%} | {done / due:.3f} |")
    print(
        f"\n{seen['heartbeats']} heartbeats looked at: {seen['full']} with all {_SLOTS} slots taken, {seen['over']} over their ",
        end="",
    )
    print(f"memory; {seen['overflows']} overruns in the logs.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleet", default="H200,A100*2,A10*3")
    parser.add_argument("--dilate", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
