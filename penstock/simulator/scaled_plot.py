"""Scaled runs as a picture: the backlog, the workers, the decisions; and what each rule cost for what it attained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.failures import Failure
from penstock.simulator.plot import figure_class
from penstock.simulator.scaled import Scaled
from penstock.simulator.scaled_report import ScaledRow


def draw_scaled(path: Path, runs: Mapping[str, Scaled], rows: Sequence[ScaledRow], target_s: float, title: str) -> None:
    """Two lines of pictures a rule, and one for all."""
    figure = figure_class()(figsize=(12, 3.4 * len(runs) + 3.2), layout="constrained")
    axes = figure.subplots(2 * len(runs) + 1, 1, gridspec_kw={"height_ratios": [1, 1.3] * len(runs) + [2]})
    for n, (rule, scaled) in enumerate(runs.items()):
        _backlog(axes[2 * n], rule, scaled, target_s)
        _workers(axes[2 * n + 1], scaled)
    _cost(axes[-1], rows, target_s)
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise Failure(f"cannot write {path}", str(error.strerror), "Name a file that can be written") from error


def _backlog(axes: Any, rule: str, scaled: Scaled, target_s: float) -> None:
    at_s = [tick.at_s for tick in scaled.ticks]
    axes.fill_between(at_s, [tick.waiting for tick in scaled.ticks], color="C0", alpha=0.4, label="requests waiting")
    axes.set_ylabel("waiting")
    axes.set_title(rule, fontsize=9)
    waits = axes.twinx()
    waits.plot(at_s, [tick.oldest_wait_s for tick in scaled.ticks], color="C3", linewidth=0.7, label="oldest wait, s")
    waits.axhline(target_s, color="C3", linestyle=":", linewidth=0.8)
    waits.set_ylabel("oldest wait, s")
    axes.legend(loc="upper left", fontsize=7)
    waits.legend(loc="upper right", fontsize=7)


def _workers(axes: Any, scaled: Scaled) -> None:
    at_s = [tick.at_s for tick in scaled.ticks]
    ready = [tick.ready for tick in scaled.ticks]
    desired = [tick.desired for tick in scaled.ticks]
    axes.fill_between(at_s, ready, step="post", color="C2", alpha=0.4, label="workers ready")
    axes.step(at_s, desired, where="post", color="k", linewidth=0.9, label="workers desired")
    for marker, up in (("^", True), ("v", False)):
        turns = [
            (at_s[n], desired[n])
            for n in range(1, len(desired))
            if desired[n] != desired[n - 1] and (desired[n] > desired[n - 1]) == up
        ]
        if turns:
            axes.plot(*zip(*turns, strict=True), marker, color="C1", markersize=4, label="decided up" if up else "decided down")
    axes.set_ylabel("workers")
    axes.legend(loc="upper right", fontsize=7, ncols=4)


def _cost(axes: Any, rows: Sequence[ScaledRow], target_s: float) -> None:
    for n, row in enumerate(rows):
        axes.plot([100 * row.attained], [row.gpu_s], "o", color=f"C{n}", label=row.rule)
    axes.axvline(95, color="k", linestyle=":", linewidth=0.8)
    axes.set_xlabel(f"requests granted within {target_s:g} s, %")
    axes.set_ylabel("GPU-seconds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
