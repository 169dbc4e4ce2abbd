"""Request to result of no-op work: three floors, Penstock directly and by HTTP, and the peers, in one run.

`python -m bench.dispatch [--quick] [--only NAMES] [--rounds 3] [--seconds 2] [--gateways 1,2] [--in-flight 1,64,512]`: a closed
loop. Contestants take turns, each on a fresh server; medians over the rounds. `--quick`: one round, 1 and 64 in flight, no file.
Installs the peers into environments of their own under bench/peers. Writes bench/results/dispatch.md.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median

from bench.dispatch import contestants as c
from bench.stand import Client, Stand, product, stand
from tests.servers import binaries

_RESULTS = Path(__file__).parents[1] / "results" / "dispatch.md"
_PEERS = ("rq", "celery", "arq", "taskiq", "dramatiq")
_IN_FLIGHT = (1, 64, 512)
_QUICK_S = 0.7
_NOTES = """All processes of a contestant share the cores with its load. The floors keep nothing safe. The raw one
pipelines what gathers, as Penstock does; in the mixed one the worker alone pipelines; the plain one sends each command alone,
as redis-py does by itself.
Each peer as its documents recommend: RQ's SimpleWorker, Celery's solo pool, Dramatiq's 8 threads; results are kept 60 s; arq,
taskiq and Celery look for results every 2 ms. Clients of RQ, Dramatiq and Celery are threads."""

Figures = dict[str, float]
Measured = dict[tuple[str, int], list[Figures]]


def _contestants(gateways: list[int]) -> Mapping[str, Callable[[Stand], Client]]:
    found: dict[str, Callable[[Stand], Client]] = {
        "raw floor": c.floor,
        "mixed floor": lambda s: c.floor(s, "mixed"),
        "plain floor": lambda s: c.floor(s, "plain"),
        "penstock": c.direct,
    }
    found |= {name: (lambda s, name=name: c.peer(s, name)) for name in _PEERS}
    found["bare FastAPI"] = c.bare
    for count in gateways:
        found[f"penstock HTTP, wait, {count}"] = lambda s, count=count: c.http_wait(s, count)
        found[f"penstock HTTP, chat, {count}"] = lambda s, count=count: c.http_chat(s, count)
    return found | {f"{name} HTTP": (lambda s, name=name: c.peer_http(s, name)) for name in _PEERS}


def _measure(args: argparse.Namespace) -> Measured:
    measured: Measured = {}
    chosen = {n: m for n, m in _contestants(args.gateways).items() if not args.only or any(o in n for o in args.only)}
    for number in range(args.rounds):
        for name, make in chosen.items():
            try:
                with stand(args.server) as s:
                    _round(name, make(s), s, args, measured)
            except RuntimeError as error:
                print(f"round {number + 1}: {name} failed: {error}", file=sys.stderr, flush=True)
    return measured


def _round(name: str, client: Client, s: Stand, args: argparse.Namespace, measured: Measured) -> None:
    for in_flight in args.in_flight:
        before = s.cpu_s()
        figures = client.measure(in_flight, args.seconds)
        done = figures["rate"] * args.seconds * 1.2  # the warm-up's, too
        used = [(a - b) * 1e6 / done if done else 0.0 for a, b in zip(s.cpu_s(), before, strict=True)]
        figures |= {"redis_us": used[0], "roles_us": sum(used[1:-1]), "client_us": used[-1]}
        measured.setdefault((name, in_flight), []).append(figures)
        print(f"{name}, {in_flight} in flight: {figures['rate']:.0f}/s", file=sys.stderr, flush=True)


def _table(measured: Measured, names: list[str], in_flight: list[int], beside: str) -> list[str]:
    lines = [
        f"| contestant | in flight | requests/s | of {beside} | p50 ms | of {beside} | p99 ms "
        "| CPU us a request: Redis | roles | client |",
        "|---" * 10 + "|",
    ]
    for name in names:
        for n in in_flight:
            if (name, n) not in measured:
                continue
            f, base = _medians(measured[name, n]), _medians(measured.get((beside, n), [{"rate": 0.0, "p50_ms": 0.0}]))
            of = [f"{f[k] / base[k]:.2f}" if base[k] else "" for k in ("rate", "p50_ms")]
            cells = [name, str(n), f"{f['rate']:.0f}", of[0], f"{f['p50_ms']:.2f}", of[1], f"{f['p99_ms']:.2f}"]
            lines.append("| " + " | ".join([*cells, *(f"{f[k]:.0f}" for k in ("redis_us", "roles_us", "client_us"))]) + " |")
    return lines


def _medians(rounds: list[Figures]) -> Figures:
    return {key: median(r[key] for r in rounds) for key in rounds[0]}


def _ratios(measured: Measured, gateways: list[int]) -> list[str]:
    """What the issue asks for, as ratios of medians."""

    def of(name: str, n: int, key: str) -> float:
        return _medians(measured[name, n])[key] if (name, n) in measured else 0.0

    def best(names: list[str], n: int, key: str, choose: Callable[..., float]) -> float:
        found = [v for v in (of(name, n, key) for name in names) if v]
        return choose(found) if found else 0.0

    ways = [f"penstock HTTP, wait, {count}" for count in gateways]
    http_peers = [f"{p} HTTP" for p in _PEERS]
    rows = [
        ("directly, 64 in flight, of the raw floor", of("penstock", 64, "rate"), of("raw floor", 64, "rate"), ">= 0.35"),
        ("directly, 64 in flight, of the mixed floor", of("penstock", 64, "rate"), of("mixed floor", 64, "rate"), ">= 0.35"),
        ("directly, 64 in flight, of the plain floor", of("penstock", 64, "rate"), of("plain floor", 64, "rate"), ">= 0.35"),
        ("directly, 64 in flight, of the best peer", of("penstock", 64, "rate"), best([*_PEERS], 64, "rate", max), ">= 5"),
        ("directly, 64 in flight, of RQ", of("penstock", 64, "rate"), of("rq", 64, "rate"), ">= 15"),
        ("a lone round trip, of the raw floor's", of("penstock", 1, "p50_ms"), of("raw floor", 1, "p50_ms"), "<= 2.5"),
        ("a lone round trip, of the best peer's", of("penstock", 1, "p50_ms"), best([*_PEERS], 1, "p50_ms", min), "<= 0.5"),
        ("HTTP, 64 in flight, of the bare POST", best(ways, 64, "rate", max), of("bare FastAPI", 64, "rate"), ">= 0.35"),
        ("HTTP, 64 in flight, of the best peer", best(ways, 64, "rate", max), best(http_peers, 64, "rate", max), ">= 3"),
    ]
    lines = ["| what | ratio | asked |", "|---|---|---|"]
    return lines + [f"| {what} | {ours / base:.2f} | {asked} |" for what, ours, base, asked in rows if ours and base]


def _machine(server: str) -> str:
    ours = ", ".join(f"{p} {version(p)}" for p in ("redis", "hiredis", "uvloop", "fastapi", "uvicorn"))
    peers = []
    for name in ("rq", "arq"):
        pip = [str(c.python_of(name)), "-m", "pip", "freeze", "--disable-pip-version-check"]
        wanted = ("rq", "celery", "arq", "taskiq", "taskiq-redis", "dramatiq", "redis")
        frozen = subprocess.run(pip, capture_output=True, text=True, check=True).stdout.split()
        peers.append(", ".join(line.replace("==", " ") for line in frozen if line.partition("==")[0] in wanted))
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {product(server)}; {ours}; "
        f"peers: {'; arq beside: '.join(peers)}. Load of the machine at the start: {os.getloadavg()[0]:.1f}."
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.dispatch", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--gateways", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--server", default="redis" if "redis" in binaries() else "valkey")
    parser.add_argument("--in-flight", type=lambda text: [int(n) for n in text.split(",")], default=list(_IN_FLIGHT))
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.in_flight, args.gateways = 1, _QUICK_S, [1, 64], [1]
    c.install_peers()
    machine, started = _machine(args.server), time.monotonic()
    measured = _measure(args)
    names = list(dict.fromkeys(name for name, _ in measured))
    http = [n for n in names if "HTTP" in n or n == "bare FastAPI"]
    text = [
        *_ratios(measured, args.gateways), "", "Directly:", "",
        *_table(measured, [n for n in names if n not in http], args.in_flight, "raw floor"), "", "By HTTP:", "",
        *_table(measured, http, args.in_flight, "bare FastAPI"),
    ]  # fmt: skip
    print("\n".join(text))
    if not args.quick and not args.only:
        command = " ".join(["python -m bench.dispatch", *sys.argv[1:]])
        head = ["# Dispatch", "", f"`{command}`, {time.monotonic() - started:.0f} s.", "", machine, "", _NOTES, ""]
        _RESULTS.write_text("\n".join([*head, *text]) + "\n")


if __name__ == "__main__":
    main()
