"""`penstock simulate --autoscale`: the autoscaler's own `decide` on a trace, with cold starts, in simulated time."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.failures import OK, USAGE, Failure
from penstock.output import seconds_of, table
from penstock.parsing import span_of

if TYPE_CHECKING:
    from autoscaler.policy import PoolPolicy
    from penstock.simulator.fleet import Member
    from penstock.simulator.scaled import Scaler
    from penstock.simulator.state import Conditions
    from penstock.simulator.trace import Arrival


def add_scaling(parser: Any) -> None:
    """The flags of --autoscale."""
    group = parser.add_argument_group("with --autoscale", "the fleet is the most there can be; it begins with none")
    group.add_argument("--autoscale", action="store_true", help="scale the fleet, and say what it cost and who waited too long")
    group.add_argument("--cold-start", type=span_of, default=20.0, metavar="SPAN", help="from order to work (default 20s)")
    group.add_argument("--workers", default="", metavar="MIN..MAX", help="bounds (default 0 to the whole fleet)")
    group.add_argument("--policy", default="queue_delay", metavar="NAMES", help="what asks for workers (default queue_delay)")
    group.add_argument("--target", type=span_of, default=5.0, metavar="SPAN", help="queue delay to attain (default 5s)")
    group.add_argument("--per-worker", type=float, default=8.0, metavar="N", help="request_count: requests a worker (default 8)")
    group.add_argument("--up-window", type=span_of, default=0.0, metavar="SPAN", help="go up only to its least wish (default 0)")
    group.add_argument("--down-window", type=span_of, default=60.0, metavar="SPAN", help="down only to its peak (default 60s)")
    group.add_argument("--step-up", type=int, default=0, metavar="N", help="most workers more at once (default 0: any number)")
    group.add_argument("--step-down", type=int, default=0, metavar="N", help="most workers fewer at once (default 0: any number)")
    group.add_argument("--idle-timeout", type=span_of, default=300.0, metavar="SPAN", help="idle so long: to min (default 300s)")
    group.add_argument(
        "--rules",
        default="decide",
        metavar="RULES",
        help="compare: decide, decide:10s (another target), ceil:N:60s (cooldown), keda:N, with commas",
    )


def simulate_scaled(
    args: argparse.Namespace, trace: "Sequence[Arrival]", fleet: "Sequence[Member]", strategies: Sequence[str], at: "Conditions"
) -> int:
    """Runs each rule on the same trace."""
    from penstock.simulator.scaled import Cold, ScaledSimulation
    from penstock.simulator.scaled_report import HEAD, scaled_row

    policy = _policy(args, len(fleet))
    if len(strategies) != 1:
        raise Failure("--autoscale needs one strategy", f"there are {len(strategies)}", "Say --strategy pull", USAGE)
    if len({member.gpu.name for member in fleet}) > 1:
        raise Failure("a pool has one kind of GPU", f"--fleet {args.fleet} has more", "Say --fleet 'A10*16'", USAGE)
    if at.troubles:
        raise Failure("--kill and --freeze do not go with --autoscale", "", "Leave them out", USAGE)
    scalers = {rule.strip(): _scaler(rule.strip(), policy) for rule in args.rules.split(",")}
    cold = Cold(args.cold_start)
    runs = {rule: ScaledSimulation(trace, fleet, strategies[0], at, scaler, cold).scale() for rule, scaler in scalers.items()}
    rows = [scaled_row(rule, run, args.target) for rule, run in runs.items()]
    if args.plot:
        from penstock.simulator.scaled_plot import draw_scaled

        title = f"{args.fleet}: {len(trace)} requests of {Path(args.trace).name}, cold start {args.cold_start:g} s"
        draw_scaled(Path(args.plot), runs, rows, args.target, title)
    if args.output == "table":
        print(table(HEAD, [row.cells() for row in rows]))
    elif args.output == "json":
        print(json.dumps([row.document() for row in rows], indent=2))
    else:
        for row in rows:
            print(json.dumps(row.document()))
    return OK


def _policy(args: argparse.Namespace, most: int) -> "PoolPolicy":
    from autoscaler.policy import PoolPolicy
    from dispatch.scaling import ScalingPolicy

    least, _, upper = args.workers.partition("..") if args.workers else ("0", "", str(most))
    if not least.isdigit() or not upper.isdigit() or not int(least) <= int(upper) <= most:
        raise Failure(f"--workers does not understand {args.workers!r}", "", f"Say 0..{most}; the fleet has {most}", USAGE)
    names = [name.strip() for name in args.policy.split(",")]
    for name in names:
        if name not in list(ScalingPolicy):
            raise Failure(f"no policy {name!r}", f"it is one of {', '.join(ScalingPolicy)}", "Name those", USAGE)
        if name in (ScalingPolicy.UTILISATION, ScalingPolicy.LATENCY):
            raise Failure(
                f"{name} is not simulated", "the simulator knows no such gauge", "Take queue_delay, request_count", USAGE
            )
    if args.step_up < 0 or args.step_down < 0 or not args.per_worker > 0 or not args.target > 0:
        raise Failure("a step, a target or a number a worker is below nothing", "", "Say a larger number", USAGE)
    return PoolPolicy(
        min=int(least),
        max=int(upper),
        policies=tuple(ScalingPolicy(name) for name in names),
        target_s=args.target,
        requests_per_worker=args.per_worker,
        up_window_s=args.up_window,
        down_window_s=args.down_window,
        step_up=args.step_up,
        step_down=args.step_down,
        idle_timeout_s=args.idle_timeout,
    )


def _scaler(rule: str, policy: "PoolPolicy") -> "Scaler":
    from dataclasses import replace

    from penstock.simulator.scalers import Decided, FixedRule, Keda

    name, *rest = rule.split(":")
    try:
        if name == "decide" and len(rest) <= 1:
            return Decided(replace(policy, target_s=seconds_of(rest[0])) if rest else policy)
        if name == "ceil" and 1 <= len(rest) <= 2 and float(rest[0]) > 0:
            cooldown_s = seconds_of(rest[1]) if len(rest) == 2 else 60.0
            return FixedRule(float(rest[0]), cooldown_s, policy.max, least=policy.min)
        if name == "keda" and len(rest) == 1 and float(rest[0]) > 0:
            return Keda(float(rest[0]), policy.max, least=policy.min)
    except ValueError:
        pass
    raise Failure(f"--rules does not understand {rule!r}", "", "Say decide, decide:10s, ceil:8:60s or keda:8", USAGE)
