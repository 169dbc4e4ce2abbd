"""Whether costs grow with what waits and with who is parked: the server's CPU a call.

`python -m bench.growth [--waiting 1000,10000,100000] [--workers 1,10,100,1000] [--rounds 25] [--server redis]`. Each size has a
server of its own; sizes take turns, round by round, so that a busy machine is as busy for all. A line in the table is the median
of the rounds, and the median of its ratios to the smallest size. Writes bench/results/growth.md and growth.svg.
"""

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from bench.growth.subjects import AT_ONCE, Backlog, Parked, Subject
from bench.stand import product
from tests.servers import binaries, running

_RESULTS = Path(__file__).parents[1] / "results"

Rounds = dict[int, list[dict[str, float]]]
"""By size, what each round cost."""


async def _measure(kind: type[Subject], sizes: list[int], rounds: int, server: str) -> Rounds:
    found: Rounds = {size: [] for size in sizes}
    with contextlib.ExitStack() as stack:
        subjects = {size: kind(stack.enter_context(running(server)).url, size) for size in sizes}
        for subject in subjects.values():
            await subject.fill()
            await subject.measure()  # loads the functions
        for number in range(rounds):
            for size in sizes if number % 2 else reversed(sizes):
                found[size].append(await subjects[size].measure())
        for subject in subjects.values():
            await subject.close()
    return found


def _ratio(found: Rounds, size: int, call: str) -> float:
    return median(there[call] / here[call] for there, here in zip(found[size], found[min(found)], strict=True))


def _table(what: str, found: Rounds) -> list[str]:
    calls = list(next(iter(found.values()))[0])
    lines = [
        f"| {what} | " + " | ".join(f"{call}, us | of {min(found):,} {what}" for call in calls) + " |",
        "|---" * (1 + 2 * len(calls)) + "|",
    ]
    for size, rounds in found.items():
        cells = [f"{median(r[call] for r in rounds):.0f} | {_ratio(found, size, call):.2f}" for call in calls]
        lines.append(f"| {size:,} | " + " | ".join(cells) + " |")
    return lines


def _draw(measured: Mapping[str, Rounds], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "growth", "font.size": 8, "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, len(measured), figsize=(4.2 * len(measured), 2.6), squeeze=False)
    for axis, (what, found) in zip(axes[0], measured.items(), strict=True):
        for call in next(iter(found.values()))[0]:
            axis.plot(list(found), [median(r[call] for r in rounds) for rounds in found.values()], "o-", ms=3, lw=1, label=call)
        axis.set(xscale="log", xlabel=what, ylim=(0, None))
        axis.legend(frameon=False)
    axes[0][0].set_ylabel("CPU of the server a call, us")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def _sizes(text: str) -> list[int]:
    return sorted(int(n) for n in text.split(","))


async def _main(args: argparse.Namespace) -> None:
    measured = {
        "waiting": await _measure(Backlog, args.waiting, args.rounds, args.server),
        "parked workers": await _measure(Parked, args.workers, args.rounds, args.server),
    }
    lines: list[str] = []
    for what, found in measured.items():
        lines += [*_table(what, found), ""]
    print("\n".join(lines))
    _draw(measured, _RESULTS / "growth.svg")
    command = " ".join(["python -m bench.growth", *sys.argv[1:]])
    load = os.getloadavg()[0]
    told = f"{os.cpu_count()} cores, {product(args.server)}; load at the end {load:.1f}. {AT_ONCE} calls in one write."
    head = ["# Growth", "", f"`{command}`: {told} Asked: <= 1.2 of the smallest.", "", "![growth](growth.svg)", ""]
    (_RESULTS / "growth.md").write_text("\n".join([*head, *lines]).rstrip() + "\n")


def main() -> None:
    """Measure, print, draw and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--waiting", type=_sizes, default=[1_000, 10_000, 100_000])
    parser.add_argument("--workers", type=_sizes, default=[1, 10, 100, 1_000])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--server", default="redis" if "redis" in binaries() else "valkey")
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
