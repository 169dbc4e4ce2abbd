"""The strategies in simulated time: pull against its bounds, on fleets, traces and loads it was and was not found on.

`python -m bench.simulated --trace FILE [--requests 4000]` prints bench/results/simulated.md. The trace is a public one, read by
path; the others are made up here.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dispatch.scores import Strategy
from penstock.simulator.fleet import Member, capacity_requests_per_s, fleet_of
from penstock.simulator.report import Row, Slo, row_of
from penstock.simulator.simulation import Simulation
from penstock.simulator.state import Conditions, Trouble
from penstock.simulator.trace import Arrival, gathered, made_up, read_trace, repeated, scaled

FLEETS = {
    "6": "H200,A100*2,A10*3",
    "36": "H200*4,H100*6,A100*8,L40S*8,A10*10",
    "12 *": "H200*2,H100*2,A100*2,L40S*3,A10*3",
    "9 *": "H200,A10*8",
}
PACES = (("0.4", 0.4, 0.0), ("0.85", 0.85, 0.0), ("0.4, 5 s bursts", 0.4, 5.0), ("0.85, 5 s bursts", 0.85, 5.0))
TROUBLES = {
    "one dies each minute": Trouble("kill", 60.0, 10.0, every=True),
    "one frozen for 10 s": Trouble("freeze", 60.0, 10.0),
}


def long_prompts(count: int, seed: int) -> list[Arrival]:
    """Documents: prompts of about 5,000 tokens, answers of about 55."""
    rng = random.Random(seed)
    at_s, arrivals = 0.0, []
    for _ in range(count):
        at_s += rng.expovariate(5.0)
        prompt_tokens = min(int(rng.lognormvariate(8.5, 0.8)) + 8, 30_000)
        arrivals.append(Arrival(at_s, prompt_tokens, min(int(rng.lognormvariate(4.0, 1.0)) + 2, 3_000)))
    return arrivals


def paced(trace: Sequence[Arrival], fleet: Sequence[Member], load: float, burst_s: float) -> list[Arrival]:
    arrivals = scaled(trace, load * capacity_requests_per_s(fleet, trace))
    return gathered(arrivals, burst_s) if burst_s else arrivals


def run(trace: Sequence[Arrival], fleet: Sequence[Member], strategy: str, *troubles: Trouble) -> Row:
    return row_of(strategy, Simulation(trace, fleet, strategy, Conditions(troubles=troubles)).run(), fleet, Slo())


def bound_s(trace: Sequence[Arrival], fleet: Sequence[Member]) -> float:
    """p99 time to first token if all GPUs prefilled each prompt together and did nothing else, first come first served."""
    whole = sum(m.gpu.prefill_tokens_per_s for m in fleet)
    fastest = max(m.gpu.prefill_tokens_per_s for m in fleet)
    free_at, spans = 0.0, []
    for a in trace:
        free_at = max(free_at, a.at_s) + a.prompt_tokens / whole
        spans.append(max(free_at - a.at_s, a.prompt_tokens / fastest))
    return sorted(spans)[int(0.99 * (len(spans) - 1))]


def mark(value: float, limit: float) -> str:
    return f"{value:.2f}" if value <= limit else f"**{value:.2f}**"


def against_bounds(traces: dict[str, list[Arrival]]) -> tuple[list[str], dict[str, list[int]]]:
    head = "mean, oracle | mean: pull / oracle | p99 first token: pull / oracle | the same, least possible | mean: pull / greedy"
    lines = [f"| trace | fleet | load | {head} |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    held: dict[str, list[int]] = {
        "mean <= 1.05 x oracle": [0, 0],
        "p99 first token": [0, 0],
        "mean <= 0.6 x greedy at 0.85": [0, 0],
    }
    for trace_name, trace in traces.items():
        for fleet_name, gpus in FLEETS.items():
            fleet = fleet_of(gpus)
            for pace, load, burst_s in PACES:
                arrivals = paced(trace, fleet, load, burst_s)
                oracle, pull, greedy = (run(arrivals, fleet, name) for name in ("oracle", "pull", "greedy"))
                mean, tail = pull.e2e_mean_s / oracle.e2e_mean_s, pull.ttft_p99_s / oracle.ttft_p99_s
                least = bound_s(arrivals, fleet) / oracle.ttft_p99_s
                of_greedy = pull.e2e_mean_s / greedy.e2e_mean_s
                tail_limit = 1.0 if burst_s else 0.6
                checks = {"mean <= 1.05 x oracle": mean <= 1.05, "p99 first token": tail <= tail_limit}
                if pace == "0.85":
                    checks["mean <= 0.6 x greedy at 0.85"] = of_greedy <= 0.6
                if "*" not in trace_name + fleet_name:
                    for name, ok in checks.items():
                        held[name][0] += ok
                        held[name][1] += 1
                greedy_cell = mark(of_greedy, 0.6) if pace == "0.85" else f"{of_greedy:.2f}"
                cells = f"{oracle.e2e_mean_s:.2f} s | {mark(mean, 1.05)} | {mark(tail, tail_limit)} | {least:.2f} | {greedy_cell}"
                lines.append(f"| {trace_name} | {fleet_name} | {pace} | {cells} |")
    return lines, held


def in_trouble(traces: dict[str, list[Arrival]]) -> list[str]:
    lines = ["| trace | fleet | load | mean, calm | one dies each minute | one frozen for 10 s | oracle: one dies each minute |"]
    lines.append("|---|---|---|---|---|---|---|")
    for trace_name, trace in traces.items():
        for fleet_name in ("6", "36"):
            fleet = fleet_of(FLEETS[fleet_name])
            for pace, load, _ in PACES[:2]:
                # Long enough for some deaths: the fleet of 36 works ten times as fast.
                arrivals = paced(repeated(trace, len(trace) * (3 if fleet_name == "6" else 12)), fleet, load, 0.0)
                calm = run(arrivals, fleet, "pull").e2e_mean_s
                ratios = [run(arrivals, fleet, "pull", trouble).e2e_mean_s / calm for trouble in TROUBLES.values()]
                oracle = (
                    run(arrivals, fleet, "oracle", TROUBLES["one dies each minute"]).e2e_mean_s
                    / run(arrivals, fleet, "oracle").e2e_mean_s
                )
                cells = " | ".join(mark(r, 1.2) for r in ratios)
                lines.append(f"| {trace_name} | {fleet_name} | {pace} | {calm:.2f} s | {cells} | {oracle:.2f} |")
    return lines


def all_strategies(traces: dict[str, list[Arrival]]) -> list[str]:
    lines = ["| strategy | " + " | ".join(f"{name}, {pace[0]}" for name in traces for pace in PACES[:3]) + " |"]
    lines.append("|---" * (1 + 3 * len(traces)) + "|")
    fleet = fleet_of(FLEETS["6"])
    cells: dict[str, list[str]] = {str(name): [] for name in ("greedy", *Strategy)}
    for trace in traces.values():
        for _, load, burst_s in PACES[:3]:
            arrivals = paced(trace, fleet, load, burst_s)
            oracle = run(arrivals, fleet, "oracle")
            for name, row in cells.items():
                found = run(arrivals, fleet, name)
                row.append(f"{found.e2e_mean_s / oracle.e2e_mean_s:.2f} / {found.ttft_p99_s / oracle.ttft_p99_s:.2f}")
    return lines + [f"| {name} | {' | '.join(row)} |" for name, row in cells.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", required=True, type=Path)
    parser.add_argument("--requests", type=int, default=4_000)
    args = parser.parse_args()
    started_at = time.monotonic()
    count = args.requests
    public = read_trace(args.trace)
    first, rest = public[:count], public[count : 2 * count]
    rest = [Arrival(a.at_s - rest[0].at_s, a.prompt_tokens, a.answer_tokens) for a in rest]
    traces = {
        "code": first,
        "code, its second half *": rest,
        "conversation": made_up(count, 1),
        "conversation, other seed *": made_up(count, 99),
        "documents *": long_prompts(count, 5),
    }
    lines, held = against_bounds(traces)
    main_traces = {name: trace for name, trace in traces.items() if "*" not in name}
    for title, part in (
        ("Pull against its bounds", lines),
        ("Deaths and freezes: mean end-to-end, pull against itself without", in_trouble(main_traces)),
        ("All strategies, fleet of 6: mean end-to-end / p99 time to first token, against oracle", all_strategies(main_traces)),
    ):
        print(f"## {title}\n")
        print("\n".join(part), end="\n\n")
    print("Held, of the lines without *: " + "; ".join(f"{name}: {ok} of {of}" for name, (ok, of) in held.items()) + ".")
    print(f"{time.monotonic() - started_at:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
