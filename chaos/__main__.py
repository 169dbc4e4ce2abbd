"""`python -m chaos`: one run, its table, and an exit code: 0 when every promise was kept, 1 when not.

Never here: the run (run.py), the promises (checker.py).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import uvloop

from chaos.checker import check
from chaos.faults import FAULTS, SENTINEL, SINGLE
from chaos.history import read
from chaos.invariants import Violation
from chaos.report import as_markdown, report
from chaos.run import ALL, NONE, SOME, Config, run


def main() -> int:
    """Parse, run, check, tell."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Break everything at once and see what is kept.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--topology", choices=(SINGLE, SENTINEL), default=SINGLE)
    parser.add_argument("--server", default="", help="redis or valkey; default: the first one found")
    parser.add_argument("--sim", type=int, metavar="N", help="sim workers; default: 3, with --scaled 1")
    parser.add_argument("--transformers", type=int, metavar="N", help="transformers workers; default: 2, with --scaled 1")
    parser.add_argument("--clients", type=int, default=20, metavar="N")
    parser.add_argument("--gap", type=float, default=2.2, metavar="S", help="mean time between faults")
    parser.add_argument("--only", default="", help=f"faults, by comma: {', '.join(FAULTS)}")
    parser.add_argument("--settle", type=float, default=90.0, metavar="S", help="patience after healing")
    parser.add_argument(
        "--poison", type=float, default=0.01, metavar="P", help="share of prompts that do something to their engine"
    )
    parser.add_argument("--launched", choices=(SOME, ALL, NONE), default=SOME, help="workers whose exits a launcher tells")
    parser.add_argument("--scaled", action="store_true", help="autoscalers, agents and a pool of theirs are victims, too")
    parser.add_argument("--out", type=Path, help="folder for history and logs; default: a temporary one")
    parser.add_argument("--check", type=Path, metavar="HISTORY", help="only check a history that is there")
    args = parser.parse_args()
    if args.check:
        return _judge(args.check)
    only = tuple(name for name in args.only.split(",") if name)
    unknown = [name for name in only if name not in FAULTS]
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}")
    if args.scaled and args.topology != SINGLE:
        parser.error("--scaled needs one server: what a failover may forget of leaders is not judged")
    folder = (args.out or Path(tempfile.mkdtemp(prefix="penstock-chaos-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    history = folder / "history.jsonl"
    history.unlink(missing_ok=True)
    config = Config(
        seed=args.seed,
        seconds=args.minutes * 60,
        topology=args.topology,
        server=args.server,
        sim_workers=args.sim if args.sim is not None else 1 if args.scaled else 3,
        transformers_workers=args.transformers if args.transformers is not None else 1 if args.scaled else 2,
        clients=args.clients,
        gap_s=args.gap,
        only=only,
        settle_s=args.settle,
        launched=args.launched,
        poison=args.poison,
        scaled=args.scaled,
    )
    uvloop.run(run(config, folder, history))
    return _judge(history)


def _judge(path: Path) -> int:
    history = read(path)
    violations = check(history)
    print(as_markdown(report(history, violations)))
    kinds: dict[tuple[str, str], Violation] = {}
    for violation in violations:
        kinds.setdefault((violation.invariant, violation.what), violation)
    # One of each kind; what only follows from the others (I1: all is stuck) comes last.
    for violation in sorted(kinds.values(), key=lambda v: v.invariant == "I1"):
        print(f"{violation.invariant}: {violation.what}\n    {json.dumps(violation.evidence, ensure_ascii=False)[:1200]}")
    print(f"history: {path}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
