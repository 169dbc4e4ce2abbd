"""The figures as a picture, PNG or SVG by the file's name. The only place that imports matplotlib, and only when asked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.failures import USAGE, Failure
from penstock.simulator.fleet import Member
from penstock.simulator.report import Row

ENDINGS = (".png", ".svg")


def check(path: Path) -> None:
    """Refuse before the run what cannot be drawn after it."""
    if path.suffix.lower() not in ENDINGS:
        raise Failure(f"no picture can be written to {path}", "its name ends in neither .png nor .svg", "Name it so", USAGE)
    if not path.parent.is_dir():
        raise Failure(
            f"no picture can be written to {path}", f"there is no folder {path.parent}", "Make it, or name another", USAGE
        )
    figure_class()


def draw(path: Path, rows: Sequence[Row], fleet: Sequence[Member], title: str) -> None:
    """Time to first token, end-to-end time, and each kind of GPU's share of the work against its share of the speed."""
    figure = figure_class()(figsize=(11, 2.2 + 0.42 * len(rows)), layout="constrained")
    first, whole, work = figure.subplots(1, 3, sharey=True)
    names = [row.strategy for row in rows]
    _spans(first, rows, "time to first token, s", ("p50", "p95", "p99"), lambda r: (r.ttft_p50_s, r.ttft_p95_s, r.ttft_p99_s))
    _spans(whole, rows, "end to end, s", ("mean", "p95", "p99"), lambda r: (r.e2e_mean_s, r.e2e_p95_s, r.e2e_p99_s))
    _shares(work, rows, fleet)
    first.set_yticks(range(len(names)), names)
    first.invert_yaxis()
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise Failure(f"cannot write {path}", str(error.strerror), "Name a file that can be written") from error


def _spans(axes: Any, rows: Sequence[Row], title: str, labels: Sequence[str], values: Any) -> None:
    for k, label in enumerate(labels):
        axes.plot([values(row)[k] for row in rows], range(len(rows)), "o|x"[k], label=label, markersize=8)
    axes.set_xscale("log")
    axes.set_title(title, fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=7)


def _shares(axes: Any, rows: Sequence[Row], fleet: Sequence[Member]) -> None:
    kinds = list(dict.fromkeys(member.gpu.name for member in fleet))
    whole = sum(member.gpu.tokens_per_s for member in fleet)
    for color, kind in enumerate(kinds):
        ours = [member for member in fleet if member.gpu.name == kind]
        weight = sum(member.gpu.tokens_per_s for member in ours) / whole
        worked = [sum(row.share[member.name] for member in ours) for row in rows]
        axes.plot(worked, range(len(rows)), "s", color=f"C{color}", label=f"{kind}: work")
        axes.axvline(weight, color=f"C{color}", linestyle=":", label=f"{kind}: weight")
    axes.set_title("share of the work and of the weight", fontsize=9)
    axes.legend(fontsize=7)


def figure_class() -> Any:
    """What makes pictures, or why there are none."""
    try:
        from matplotlib.figure import Figure  # no pyplot: it looks for a screen
    except ImportError as error:
        raise Failure(
            "--plot needs matplotlib", "it is not installed here", "pip install 'penstock[plot]', or leave out --plot", USAGE
        ) from error
    return Figure
