"""The screen of `penstock top` as lines: queues, workers, pools. Pure: what it shows is given, so is how wide it may be.

Never here: asking (commands/top.py), what numbers mean (looks.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from penstock.output import size, span
from penstock.screen.looks import Document, Looks

_BARS = "▁▂▃▄▅▆▇█"
_BAR_CELLS = 8
_TREND_CELLS = 12
_LATE_MS = 3_000
_NUMBERS = frozenset({"wait", "oldest", "run", "rate/s", "p95 ttft", "dlq", "util", "slots", "w", "tok/s", "beat"})


class Order(StrEnum):
    """How workers are sorted."""

    NAME = "name"
    BUSY = "busy"
    MEMORY = "memory"


class Style(StrEnum):
    """Colours, as ANSI says them."""

    PLAIN = ""
    HEAD = "1;36"
    GOOD = "32"
    WARN = "33"
    BAD = "31"


@dataclass(frozen=True, slots=True)
class Cell:
    """A text and its colour."""

    text: str
    style: Style = Style.PLAIN


@dataclass(frozen=True, slots=True)
class Options:
    """How to draw. `stale`: why the last look failed, "" if it did not. `keys`: whether to tell of them."""

    server: str
    clock: str
    width: int = 200
    colour: bool = False
    order: Order = Order.NAME
    paused: bool = False
    stale: str = ""
    keys: bool = False


Table = list[list[Cell]]


def drawn(looks: Looks, options: Options) -> list[str]:
    """The whole screen."""
    blocks = [
        _queues(looks) if looks.last.queues else [[Cell("No queues yet: no worker has served a model.")]],
        _workers(looks.last.workers, options.order) if looks.last.workers else [[Cell("No workers.", Style.WARN)]],
        _pools(looks.last.pools) if looks.last.pools else [],
    ]
    lines = [_line(_title(looks, options), options)]
    if options.stale:
        lines.append(_line([Cell(f"stale: {options.stale}", Style.BAD)], options))
    for block in blocks:
        lines += _aligned(block, options)
    return lines


def _title(looks: Looks, options: Options) -> list[Cell]:
    last = looks.last
    leaders = sorted({(p["leader"]["id"] or "nobody") if p["leader"]["leads"] else "nobody" for p in last.pools})
    redis = f"redis {last.redis_s * 1000:.1f} ms" if last.redis_s is not None else "redis away"
    cells = [
        Cell("penstock top", Style.HEAD),
        Cell(options.server),
        Cell(redis, Style.PLAIN if last.redis_s is not None else Style.BAD),
        Cell(options.clock),
    ]
    if leaders:
        cells.append(Cell(f"leader {', '.join(leaders)}", Style.BAD if "nobody" in leaders else Style.PLAIN))
    cells.append(Cell(f"rejected {last.rejected:.0f}", Style.WARN if last.rejected else Style.PLAIN))
    if options.paused:
        cells.append(Cell("paused", Style.WARN))
    if options.keys:
        cells.append(Cell(f"q quit  s sort: {options.order}  p pause"))
    return cells


# ---- queues


def _queues(looks: Looks) -> Table:
    head = ["queue", "wait", "oldest", "run", "rate/s", "p95 ttft", "dlq", "last 60 s"]
    rows = [_head(head)]
    for queue in looks.last.queues:
        model = queue["model"]
        rate, dead = looks.rate(model), looks.last.dead.get(model, 0)
        rows.append(
            [
                Cell(f"{model} (paused)" if queue["paused"] else model, Style.WARN if queue["paused"] else Style.PLAIN),
                Cell(str(queue["backlog"])),
                Cell(span(queue["oldest_wait_ms"] / 1000) if queue["backlog"] else "-"),
                Cell(str(queue["running"])),
                Cell("-" if rate is None else f"{rate:.1f}"),
                Cell(_seconds(looks.first_token_p95_s(model))),
                Cell(f"{dead:.0f}", Style.BAD if dead else Style.PLAIN),
                Cell(trend(looks.backlogs(model, _TREND_CELLS))),
            ]
        )
    return rows


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}s" if value < 10 else span(value)


def trend(values: Sequence[int]) -> str:
    """Values as bars; the highest fills its cell, none at all is the lowest bar."""
    most = max(values, default=0)
    return "".join(_BARS[round(value / most * (len(_BARS) - 1)) if most else 0] for value in values)


# ---- workers


def _workers(workers: Sequence[Document], order: Order) -> Table:
    head = ["worker", "host", "gpu", "mem  used/total", "util", "kv  held/limit", "slots", "w", "tok/s", "model", "state", "beat"]
    ranks = {
        Order.NAME: lambda w: (0, w["id"]),
        Order.BUSY: lambda w: (-w["running"], w["id"]),
        Order.MEMORY: lambda w: (-(_used(w) or 0.0), w["id"]),
    }
    return [_head(head), *(_worker(worker) for worker in sorted(workers, key=ranks[order]))]


def _worker(worker: Document) -> list[Cell]:
    gpu = worker["gpu"] or {}
    used, utilisation = _used(worker), gpu.get("utilisation")
    late = worker["heartbeat_age_ms"] > _LATE_MS
    memory = "-"
    if used is not None:
        memory = f"{bar(used, _BAR_CELLS)}  {size(gpu['total_bytes'] - gpu['free_bytes'])} / {size(gpu['total_bytes'])}"
    return [
        Cell(worker["id"]),
        Cell(worker["host"]),
        Cell(gpu.get("name") or "-"),
        Cell(memory, Style.WARN if used is not None and used > 0.95 else Style.PLAIN),
        Cell("-" if utilisation is None else f"{utilisation * 100:.0f} %"),
        Cell(f"{bar(_share(worker['held_tokens'], worker['limit_tokens']), _BAR_CELLS)}  {_kv(worker)}"),
        Cell(f"{worker['running']}/{worker['slots']}"),
        Cell(f"{worker['weight']:.1f}"),
        Cell(f"{worker['tokens_per_s']:.0f}"),
        Cell(worker["model"]),
        Cell(_state(worker), _STATE_STYLES.get(worker["state"], Style.WARN)),
        Cell(span(worker["heartbeat_age_ms"] / 1000), Style.BAD if late else Style.PLAIN),
    ]


_STATE_STYLES = {"ready": Style.GOOD, "quarantined": Style.BAD}


def _state(worker: Document) -> str:
    busy = "busy" if worker["state"] == "ready" and worker["running"] else worker["state"]
    return f"{busy} {worker.get('progress') or worker.get('error') or ''}".strip()


def _used(worker: Document) -> float | None:
    gpu = worker["gpu"] or {}
    return _share(gpu["total_bytes"] - gpu["free_bytes"], gpu["total_bytes"]) if gpu.get("total_bytes") else None


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole else 0.0


def _kv(worker: Document) -> str:
    return f"{_short(worker['held_tokens'])} / {_short(worker['limit_tokens'])}"


def _short(count: int) -> str:
    return str(count) if count < 1000 else f"{count / 1000:.1f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


def bar(share: float, cells: int) -> str:
    """A share of 1 as a bar; whatever is not nothing shows."""
    full = min(cells, max(1 if share > 0 else 0, round(share * cells)))
    return "█" * full + "░" * (cells - full)


# ---- pools


def _pools(pools: Sequence[Document]) -> Table:
    return [[Cell("SCALE", Style.HEAD), Cell("")], *([Cell(pool["pool"]), Cell(*_pool(pool))] for pool in pools)]


def _pool(pool: Document) -> tuple[str, Style]:
    there = " + ".join(f"{count} {state}" for state, count in pool["workers"].items() if count) or "no workers"
    decided = pool["decided"]
    parts = [f"{there} -> desired {pool['desired']}", f"{decided['action']}: {decided['reason']}"]
    parts.append(f"{pool['min']} to {pool['max']}")
    parts += decided["limits"]
    parts += ["paused"] if pool["paused"] else []
    parts += ["dry run"] if decided["dry_run"] else []
    parts += [f"{pool['crash_loops']} in a crash loop"] if pool["crash_loops"] else []
    parts += [f"unplaceable: {pool['unplaceable']}"] if pool["unplaceable"] else []
    parts += [] if pool["leader"]["leads"] else ["nobody leads"]
    is_bad = pool["crash_loops"] or pool["unplaceable"] or not pool["leader"]["leads"]
    return " · ".join(parts), Style.BAD if is_bad else Style.WARN if pool["paused"] else Style.PLAIN


# ---- lines


def _head(names: Sequence[str]) -> list[Cell]:
    return [Cell(name.upper(), Style.HEAD) for name in names]


def _aligned(rows: Table, options: Options) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[i].text) for row in rows) for i in range(len(rows[0]))]
    numbers = [cell.text.lower() in _NUMBERS for cell in rows[0]]
    padded = [
        [
            Cell(cell.text.rjust(width) if number else cell.text.ljust(width), cell.style)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ]
        for row in rows
    ]
    return [_line(row, options, "  ") for row in padded]


def _line(cells: Sequence[Cell], options: Options, between: str = "   ") -> str:
    """Cells side by side, cut at the width; colours are put on afterwards, as they take no room."""
    left, parts = options.width, []
    for number, cell in enumerate(cells):
        gap = between[:left] if number else ""
        text = cell.text[: left - len(gap)]
        left -= len(gap) + len(text)
        parts.append(gap)
        parts.append(f"\x1b[{cell.style}m{text}\x1b[0m" if options.colour and cell.style and text.strip() else text)
    return "".join(parts) if options.colour else "".join(parts).rstrip()
