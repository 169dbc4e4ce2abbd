"""The strategies on live processes, beside the simulator on the same trace: real server, gateway and `sim` workers, HTTP streams.

`python -m bench.strategies --trace FILE [--fleet GPUS] [--strategies NAMES] [--load 0.4] [--requests 80] [--dilate 10]`.
Time runs `--dilate` times slower than the GPUs of the table would: scheduling noise of the machine then counts little. The
simulator plays the same slowed fleet and arrivals (pull's score is not linear in time); all times are divided by the dilation.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.live import LiveFleet, live_fleet
from dispatch.scores import Strategy
from penstock.simulator.fleet import Member, capacity_requests_per_s, fleet_of
from penstock.simulator.report import Slo, quantile, row_of
from penstock.simulator.simulation import Simulation
from penstock.simulator.state import Conditions
from penstock.simulator.trace import Arrival, made_up, read_trace, repeated, scaled

_STRATEGIES = "pull,weighted_least_connections,round_robin,least_connections,power_of_two"


@dataclass(frozen=True)
class Figures:
    """One run's, in the GPUs' own seconds. `share`: each kind of GPU's part of the tokens worked."""

    e2e_mean_s: float
    e2e_p95_s: float
    ttft_mean_s: float
    ttft_p95_s: float
    share: dict[str, float]

    def spans(self) -> tuple[float, ...]:
        return (self.e2e_mean_s, self.e2e_p95_s, self.ttft_mean_s, self.ttft_p95_s)


def figures(e2e: Sequence[float], ttft: Sequence[float], worked: dict[str, int], dilate: float) -> Figures:
    ends, firsts = sorted(s / dilate for s in e2e), sorted(s / dilate for s in ttft)
    whole = sum(worked.values())
    return Figures(
        sum(ends) / len(ends),
        quantile(ends, 0.95),
        sum(firsts) / len(firsts),
        quantile(firsts, 0.95),
        {gpu: tokens / whole for gpu, tokens in worked.items()},
    )


def slowed(fleet: Sequence[Member], dilate: float) -> list[Member]:
    """The fleet as `sim_speed` = 1 / dilate makes it."""
    return [
        Member(
            m.name,
            replace(
                m.gpu,
                step_s=m.gpu.step_s * dilate,
                per_sequence_s=m.gpu.per_sequence_s * dilate,
                prefill_tokens_per_s=m.gpu.prefill_tokens_per_s / dilate,
            ),
        )
        for m in fleet
    ]


def simulated(trace: Sequence[Arrival], fleet: Sequence[Member], strategy: str, dilate: float) -> Figures:
    """The same in the simulator."""
    outcome = Simulation(trace, fleet, strategy, Conditions()).run()
    row = row_of(strategy, outcome, fleet, Slo())
    worked: dict[str, int] = {}
    for member in fleet:
        worked[member.gpu.name] = worked.get(member.gpu.name, 0) + round(row.share[member.name] * 1e9)
    jobs = outcome.jobs
    return figures([j.ended_at - j.arrival.at_s for j in jobs], [j.first_at - j.arrival.at_s for j in jobs], worked, dilate)


async def lived(fleet: LiveFleet, trace: Sequence[Arrival], strategy: str, dilate: float) -> Figures:
    """The same on the processes."""
    played = await fleet.play_trace(trace, strategy)
    await fleet.look_back(played)
    for p in played:
        assert p.state == "completed" and sum(n for _, n in p.said) == p.arrival.answer_tokens, (p.request, p.state)
    worked = {name.split("-")[0]: 0 for name in fleet.names.values()}
    for p in played:
        worked[fleet.name_of(p).split("-")[0]] += p.arrival.prompt_tokens + p.arrival.answer_tokens
    return figures([p.ended_at - p.sent_at for p in played], [p.first_at - p.sent_at for p in played], worked, dilate)


async def compare(args: argparse.Namespace) -> None:
    fleet = fleet_of(args.fleet)
    whole = read_trace(args.trace) if args.trace else made_up(args.requests, 1)
    trace = repeated(whole, args.requests)
    own = scaled(trace, args.load * capacity_requests_per_s(fleet, trace))
    slow_trace, slow_fleet = [replace(a, at_s=a.at_s * args.dilate) for a in own], slowed(fleet, args.dilate)
    print(
        f"{len(own)} requests of {args.trace or 'made-up conversations'} in {own[-1].at_s:.1f} s, load {args.load}, {args.fleet},"
    )
    print(f"time {args.dilate:g} times slower: each run takes {slow_trace[-1].at_s:.0f} s and the last answers.\n", flush=True)
    print(
        "| strategy | | e2e mean | e2e p95 | first token mean | first token p95 | tokens by GPU |\n|---|---|---|---|---|---|---|"
    )
    found: dict[str, tuple[Figures, Figures]] = {}
    environment = {"PENSTOCK_WORKER__HANG_S": f"{10 * args.dilate:g}"}  # a step of prefill is slowed, too
    async with live_fleet(fleet, 1 / args.dilate, **environment) as standing:
        for strategy in args.strategies.split(","):
            as_if = simulated(slow_trace, slow_fleet, strategy, args.dilate)
            live = await lived(standing, slow_trace, strategy, args.dilate)
            found[strategy] = (live, as_if)
            print(_line(strategy, "live", live), _line("", "simulated", as_if), sep="\n", flush=True)
            ratios = " | ".join(f"{a / b:.2f}" for a, b in zip(live.spans(), as_if.spans(), strict=True))
            print(f"| | live / simulated | {ratios} | |", flush=True)
            if strategy == Strategy.PULL:
                print(_line("", "simulated, not slowed", simulated(own, fleet, strategy, 1.0)), flush=True)
    for title, pick in (("e2e mean", 0), ("first token mean", 2)):
        orders = [sorted(found, key=lambda s: found[s][i].spans()[pick]) for i in (0, 1)]
        print(f"\nOrder by {title}, live: {', '.join(orders[0])}; simulated: {', '.join(orders[1])}.")


def _line(strategy: str, kind: str, f: Figures) -> str:
    shares = ", ".join(f"{gpu} {share:.1%}" for gpu, share in f.share.items())
    return f"| {strategy} | {kind} | {' | '.join(f'{s:.3f} s' for s in f.spans())} | {shares} |"


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="without one, conversations are made up")
    parser.add_argument("--fleet", default="H200,A100*2,A10*3")
    parser.add_argument("--strategies", default=_STRATEGIES)
    parser.add_argument("--load", type=float, default=0.4)
    parser.add_argument("--requests", type=int, default=80)
    parser.add_argument("--dilate", type=float, default=10.0)
    asyncio.run(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
