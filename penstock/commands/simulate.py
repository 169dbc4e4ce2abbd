"""`penstock simulate`: strategies ranked on a trace and a fleet, in simulated time; no server, no GPU."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.commands.simulate_scaled import add_scaling, simulate_scaled
from penstock.failures import OK, USAGE, Failure
from penstock.output import seconds_of, table
from penstock.parsing import add_verb, span_of

if TYPE_CHECKING:
    from penstock.simulator.fleet import Member
    from penstock.simulator.report import Row, Slo
    from penstock.simulator.state import Conditions
    from penstock.simulator.trace import Arrival

_DESCRIPTION = """\
Play a trace of requests on a fleet of simulated GPUs, once for each strategy, and say what came of it.
The strategies rank by the same scores as the scripts in Redis; a GPU works step by step, as the sim engine does.

--load 1 is what the fleet can serve for ever with every GPU's memory full of this trace's requests; the trace's time
is scaled so that its mean is that share. oracle is weighted_least_connections with perfect, instant knowledge; with
greedy, who wakes first takes all it can hold. A file has the columns TIMESTAMP, ContextTokens, GeneratedTokens."""

_EXAMPLE = """\
penstock simulate --trace trace.csv --fleet 'H200,A100*2,A10*3' --strategy all --load 0.85
penstock simulate --trace trace.csv --fleet 'H100*4,A10*8' --strategy pull,oracle --burst 5s --plot out.svg -o json
penstock simulate --trace trace.csv --fleet 'A100*6' --strategy pull --load 0.6 --kill 'every 60s' --freeze A100-2@30s
penstock simulate --trace trace.csv --fleet 'A10*16' --strategy pull --autoscale --target 30s --rules decide,ceil:16,keda:16"""


def add_simulate(group: Any) -> None:
    """`penstock simulate`."""
    parser = add_verb(
        group,
        "simulate",
        _simulate,
        help="rank strategies on a trace and a fleet, in simulated time",
        example=_EXAMPLE,
        description=_DESCRIPTION,
    )
    parser.add_argument("--trace", required=True, metavar="FILE", help="requests to play: a CSV file")
    parser.add_argument("--fleet", required=True, metavar="GPUS", help="such as H200,A100*2,A10*3")
    parser.add_argument("--strategy", default="all", metavar="NAMES", help="all, or names with commas (default all)")
    parser.add_argument(
        "--load", type=_load, metavar="X", help="share of the fleet's token capacity (default: the trace's own pace)"
    )
    parser.add_argument("--burst", type=span_of, metavar="SPAN", help="gather the arrivals of each such span into its end")
    parser.add_argument("--requests", type=_count, metavar="N", help="how many; a trace that is shorter is played again")
    parser.add_argument("--kill", metavar="WHEN", help="'every 60s' or WORKER@30s: a worker dies, and is back after 10s")
    parser.add_argument("--freeze", metavar="WHEN", help="'every 60s' or WORKER@30s: a worker stands still for 10s")
    parser.add_argument("--heartbeat", type=span_of, default=1.0, metavar="SPAN", help="how often workers report (default 1s)")
    parser.add_argument("--wake", type=span_of, default=0.0003, metavar="SPAN", help="from a grant to its begin (default 0.3ms)")
    parser.add_argument(
        "--slo", default="ttft=2s,tpot=100ms", metavar="SPANS", help="goodput counts these (default ttft=2s,tpot=100ms)"
    )
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="for what is drawn by lot (default 7)")
    parser.add_argument("--plot", metavar="FILE", help="also draw it: a file that ends in .png or .svg")
    parser.add_argument(
        "-o", "--output", choices=["table", "json", "jsonl"], default="table", help="how to print (default table)"
    )
    add_scaling(parser)


def _simulate(args: argparse.Namespace) -> int:
    from penstock.simulator import fleet as fleets
    from penstock.simulator import plot, troubles
    from penstock.simulator.state import Conditions

    fleet = fleets.fleet_of(args.fleet)
    strategies = _strategies(args.strategy)
    slo = _slo(args.slo)
    trouble = tuple(
        t for kind in ("kill", "freeze") if getattr(args, kind) for t in troubles.troubles_of(kind, getattr(args, kind), fleet)
    )
    if args.plot:
        plot.check(Path(args.plot))
    trace = _trace(args, fleet)
    conditions = Conditions(args.wake, args.heartbeat, args.seed, trouble)
    if args.autoscale:
        return simulate_scaled(args, trace, fleet, strategies, conditions)
    rows = _run(trace, fleet, strategies, conditions, slo, quiet=args.output != "table")
    if args.plot:
        plot.draw(Path(args.plot), rows, fleet, f"{args.fleet}: {len(trace)} requests of {Path(args.trace).name}")
    _print(args.output, rows)
    return OK


def _trace(args: argparse.Namespace, fleet: "Sequence[Member]") -> "list[Arrival]":
    from penstock.simulator import trace as traces
    from penstock.simulator.fleet import capacity_requests_per_s, cost_of

    trace = traces.read_trace(Path(args.trace))
    if args.requests:
        trace = traces.repeated(trace, args.requests)
    largest = max(trace, key=cost_of)
    most = max(member.gpu.kv_tokens for member in fleet)
    if cost_of(largest) > most:
        raise Failure(
            "the trace does not fit the fleet",
            f"a request of {cost_of(largest):,} tokens fits no worker; the largest holds {most:,}",
            "Add a larger GPU, or take that request out",
            USAGE,
        )
    if args.load:
        trace = traces.scaled(trace, args.load * capacity_requests_per_s(fleet, trace))
    return traces.gathered(trace, args.burst) if args.burst else trace


def _run(
    trace: "Sequence[Arrival]",
    fleet: "Sequence[Member]",
    strategies: Sequence[str],
    conditions: "Conditions",
    slo: "Slo",
    *,
    quiet: bool,
) -> "list[Row]":
    from penstock.simulator.report import row_of
    from penstock.simulator.simulation import Simulation

    rows = []
    for strategy in strategies:
        if not quiet and sys.stderr.isatty():
            print(f"{strategy} ...", file=sys.stderr)
        rows.append(row_of(strategy, Simulation(trace, fleet, strategy, conditions).run(), fleet, slo))
    return rows


def _print(kind: str, rows: "Sequence[Row]") -> None:
    from penstock.simulator.report import HEAD

    if kind == "json":
        print(json.dumps([row.document() for row in rows], indent=2))
    elif kind == "jsonl":
        for row in rows:
            print(json.dumps(row.document()))
    else:
        print(table(HEAD, [row.cells() for row in rows]))


def _strategies(text: str) -> list[str]:
    from dispatch.scores import Strategy
    from penstock.simulator.simulation import BASELINES

    known = [*BASELINES, *(str(s) for s in Strategy)]
    if text == "all":
        return known
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise Failure(f"no strategy {name!r}", f"it is one of {', '.join(known)}", "Name those, or say all", USAGE)
    return names


def _slo(text: str) -> "Slo":
    from penstock.simulator.report import Slo

    spans = {}
    for part in text.split(","):
        name, _, span = part.strip().partition("=")
        try:
            spans[name] = seconds_of(span)
        except ValueError:
            spans[name] = -1.0
        if name not in ("ttft", "tpot") or spans[name] <= 0:
            raise Failure(
                f"--slo does not understand {part.strip()!r}", "", "Say ttft=2s,tpot=100ms: first token, each further one", USAGE
            )
    return replace(Slo(), **{f"{name}_s": span for name, span in spans.items()})


def _load(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no share of the capacity like 0.85")
    return value


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of requests")
    return int(text)
