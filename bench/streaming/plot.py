"""The picture of the crowd: spans from append to client over the rate, and memory over the number of streams."""

from collections.abc import Sequence
from pathlib import Path

from bench.streaming.crowded import Crowd
from penstock.simulator.plot import figure_class


def draw(path: Path, crowds: Sequence[Crowd], asked_ms: float, asked_kb: float) -> None:
    """SVG or PNG by the file's name."""
    figure = figure_class()(figsize=(10, 3.6), layout="constrained")
    spans, memory = figure.subplots(1, 2, width_ratios=(2, 1))
    for color, crowd in enumerate(crowds):
        rates = [rate.relayed for rate in crowd.rates]
        spans.plot(rates, [r.p50_ms for r in crowd.rates], "o--", color=f"C{color}", label=f"{crowd.streams} streams, p50")
        spans.plot(rates, [r.p99_ms for r in crowd.rates], "s-", color=f"C{color}", label=f"{crowd.streams} streams, p99")
    spans.axhline(asked_ms, color="grey", linestyle=":")
    spans.set_yscale("log")
    spans.set_xlabel("chunks/s through one gateway process")
    spans.set_ylabel("append to client, ms")
    spans.legend(fontsize=7)
    memory.plot([0, *(c.streams for c in crowds)], [0.0, *(c.streams * c.stream_kb / 1000 for c in crowds)], "o-")
    most = max(c.streams for c in crowds)
    memory.plot([0, most], [0, most * asked_kb / 1000], color="grey", linestyle=":")
    memory.set_xlabel("open streams")
    memory.set_ylabel("the gateway's memory for them, MB")
    figure.savefig(path, dpi=120)
