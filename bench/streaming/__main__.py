"""How answers stream out, in one run: beside `transformers serve`, with 1,000 streams open, and the time added on the way.

`python -m bench.streaming [--quick] [--only beside,crowded,added] [--rounds 4] [--seconds 8] [--streams 1000]`. FULL=1 in the
environment adds 5,000 and 10,000 open streams. `--quick`: one short round, no file. Writes bench/results/streaming.md and .svg.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import uvloop

from bench.stand import product
from bench.streaming import added, beside, crowded
from bench.streaming.plot import draw
from tests.servers import binaries

_RESULTS = Path(__file__).parents[1] / "results" / "streaming.md"
_RATES = (1_000.0, 2_500.0, 5_000.0, 7_500.0, 10_000.0)
_ASKED_RATE, _ASKED_MS, _ASKED_KB = 5_000.0, 60.0, 100.0
_FULL_STREAMS = (5_000, 10_000)
_STARTS = 2  # of both servers that are asked in turns
_NOTES = """All processes of a measurement share the cores with its load. A span is taken on the machine's monotonic clock: just
before a chunk is appended (or the engine yields a token) it is stamped in its own text, and again when its bytes are in the
client's hands."""


@dataclass(frozen=True)
class Row:
    """One line of what was asked for."""

    what: str
    found: str
    asked: str


def _beside(args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    millions, rounds = 0.0, list[tuple[beside.Round, beside.Round]]()
    for start in range(min(_STARTS, args.rounds)):  # what a process is lucky or unlucky in, it keeps
        share = len(range(start, args.rounds, _STARTS))
        millions, found = uvloop.run(beside.measure(args.server, share, args.seconds))
        rounds += found
    tokens, first, best = beside.ratios(rounds)
    rows = [
        Row(f"{beside.STREAMS} streams: tokens/s of `transformers serve`'s", f"{tokens:.3f}", ">= 0.95"),
        Row(f"{beside.STREAMS} streams: tokens/s of its, best round of best round", f"{best:.3f}", ""),
        Row(f"{beside.STREAMS} streams: time to first token of its", f"{first:.3f}", "<= 1.2"),
    ]
    lines = [
        f"Beside `transformers serve --continuous-batching`: {millions:.0f} M parameters, random weights, float32, "
        f"{beside.STREAMS} streams in a closed loop; rounds in turns, {args.seconds:g} s each, both started anew after "
        f"{-(-args.rounds // _STARTS)}; medians of the ratios above.",
        "",
        "| round | tokens/s: penstock | serve | ratio | first token p50 ms: penstock | serve | ratio | p99 ms: penstock | serve "
        "| CPU us a token: penstock | serve |",
        "|---" * 11 + "|",
    ]
    if left_out := len(rounds) - len(beside.fed(rounds)):
        lines[0] += f" {left_out} in which a server was starved by something else do not count."
    for number, (ours, theirs) in enumerate(rounds, 1):
        cells = [
            f"{ours.tokens_per_s:.0f}", f"{theirs.tokens_per_s:.0f}", f"{ours.tokens_per_s / max(theirs.tokens_per_s, 1.0):.3f}",
            f"{ours.first_p50_ms:.0f}", f"{theirs.first_p50_ms:.0f}", f"{ours.first_p50_ms / theirs.first_p50_ms:.3f}",
            f"{ours.first_p99_ms:.0f}", f"{theirs.first_p99_ms:.0f}",
            " + ".join(f"{us:.0f} ({name})" for name, us in ours.cpu_us.items()),
            " + ".join(f"{us:.0f}" for us in theirs.cpu_us.values()),
        ]  # fmt: skip
        lines.append(f"| {number} | " + " | ".join(cells) + " |")
    return rows, lines


def _crowded(args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    crowds, notes = [], []
    for streams in args.streams:
        if why := crowded.allow(streams):
            notes.append(f"Left out: {why}.")
            continue
        rates = (1_000.0, _ASKED_RATE) if args.quick else _RATES
        crowd = uvloop.run(crowded.measure(args.server, streams, rates, min(args.seconds, 4.0)))
        crowds.append(crowd)
        rows += _asked_of(crowd)
    lines = [
        "Open streams on one gateway process, chunks appended in turn at a steady rate; `most`: as fast as they are relayed.",
        "",
        "| streams | opened/s | kB a stream | chunks/s offered | relayed | append to client p50 ms | p99 ms "
        "| CPU us a chunk: gateway | Redis | load |",
        "|---" * 10 + "|",
    ]
    for crowd in crowds:
        for rate in (*crowd.rates, crowd.most):
            offered = "most" if rate is crowd.most else f"{rate.offered:.0f}"
            lines.append(
                f"| {crowd.streams} | {crowd.opened_per_s:.0f} | {crowd.stream_kb:.1f} | {offered} | {rate.relayed:.0f} "
                f"| {rate.p50_ms:.1f} | {rate.p99_ms:.1f} | {rate.gateway_us:.0f} | {rate.redis_us:.0f} | {rate.load_us:.0f} |"
            )
    if crowds and not args.quick and not args.only:
        draw(_RESULTS.with_suffix(".svg"), crowds, _ASKED_MS, _ASKED_KB)
        lines += ["", "![open streams](streaming.svg)"]
    return rows, [*lines, *notes]


def _asked_of(crowd: crowded.Crowd) -> list[Row]:
    """Of the rate that was asked for; where it is not kept, the highest that is: the knee."""
    at = next((r for r in crowd.rates if r.offered > 0.95 * _ASKED_RATE), crowd.rates[-1])
    kept = [r.relayed for r in crowd.rates if r.p99_ms <= _ASKED_MS]
    knee = f"the knee: {max(kept):.0f} chunks/s within {_ASKED_MS:.0f} ms" if kept else f"no rate stays within {_ASKED_MS:.0f} ms"
    told = f"{at.p50_ms:.1f} / {at.p99_ms:.1f} ms at {at.relayed:.0f} chunks/s"
    name = f"{crowd.streams} open streams"
    return [
        Row(f"{name}: append to client p50 / p99", f"{told}; {knee}", f"p99 <= {_ASKED_MS:.0f} ms at {_ASKED_RATE:.0f}/s"),
        Row(f"{name}: memory each", f"{crowd.stream_kb:.1f} kB", f"<= {_ASKED_KB:.0f} kB"),
        Row(f"{name}: chunks/s one gateway process relays at most", f"{crowd.most.relayed:.0f}", ""),
    ]


def _added(args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    found = uvloop.run(added.measure(args.server, [1, 32] if args.quick else [1, 32, 64], min(args.seconds, 5.0)))
    rows = [
        Row(f"added to the first token, p50 / p99, {a.streams} streams", f"{a.first_ms[0]:.1f} / {a.first_ms[1]:.1f} ms", "")
        for a in found
    ]
    lines = [
        "Added between engine and client: `sim` as an H100, 64 tokens a request, closed loop, one gateway, one worker. A worker "
        "that holds more than 4 requests writes each stream at most 20 times a second, so a token waits up to 50 ms for company:",
        "",
        "| streams | tokens/s | submit to engine p50 / p99 ms | that and the first token's way back | each token's way back "
        "| CPU us a token: gateway | worker | Redis |",
        "|---" * 8 + "|",
    ]
    for a in found:
        spans = " | ".join(f"{p50:.1f} / {p99:.1f}" for p50, p99 in (a.to_engine_ms, a.first_ms, a.each_ms))
        cpu = f"{a.gateway_us:.0f} | {a.worker_us:.0f} | {a.redis_us:.0f}"
        lines.append(f"| {a.streams} | {a.tokens_per_s:.0f} | {spans} | {cpu} |")
    return rows, lines


_PARTS: dict[str, Callable[[argparse.Namespace], tuple[list[Row], list[str]]]] = {
    "beside": _beside,
    "crowded": _crowded,
    "added": _added,
}


def _machine(server: str) -> str:
    ours = ", ".join(f"{p} {version(p)}" for p in ("redis", "hiredis", "uvloop", "fastapi", "uvicorn", "transformers", "torch"))
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {product(server)}; {ours}. "
        f"Load of the machine at the start: {os.getloadavg()[0]:.1f}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.streaming", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help=", ".join(_PARTS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1_000])
    parser.add_argument("--server", default="redis" if "redis" in binaries() else "valkey")
    args = parser.parse_args(arguments)
    if os.environ.get("FULL") == "1":
        args.streams += _FULL_STREAMS
    if args.quick:
        args.rounds, args.seconds = 1, 4.0
    machine, started = _machine(args.server), time.monotonic()
    told = [part(args) for name, part in _PARTS.items() if not args.only or name in args.only]
    text = ["| what | found | asked |", "|---|---|---|"]
    text += [f"| {row.what} | {row.found} | {row.asked} |" for rows, _ in told for row in rows]
    for _, lines in told:
        text += ["", *lines]
    print("\n".join(text))
    if not args.quick and not args.only:
        command = " ".join(["python -m bench.streaming", *sys.argv[1:]])
        ended = f"{time.monotonic() - started:.0f} s. Load at the end {os.getloadavg()[0]:.1f}."
        head = ["# Streaming", "", f"`{command}`, {ended}", "", machine, "", _NOTES, ""]
        _RESULTS.write_text("\n".join([*head, *text]) + "\n")


if __name__ == "__main__":
    main()
