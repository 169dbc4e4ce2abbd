"""How the verbs print: tables for eyes, JSON for programs, human sizes and spans.

Never here: what is printed, and errors (failures.py).
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_FOR_PROGRAMS = ("object", "links")

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], object]]


def show(kind: str, rows: Sequence[Row], columns: Sequence[Column], *, empty: str) -> None:
    """A list as a table, one JSON document, or one JSON object a line."""
    if kind == "json":
        print(json.dumps({"object": "list", "data": list(rows)}, ensure_ascii=False, indent=2))
    elif kind == "jsonl":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    elif not rows:
        print(empty, file=sys.stderr)
    else:
        print(table([name for name, _ in columns], [[_cell(value(row)) for _, value in columns] for row in rows]))


def show_one(kind: str, document: Row) -> None:
    """One object: its fields a line each, or JSON."""
    if kind == "table":
        shown = [named(name, value) for name, value in document.items() if name not in _FOR_PROGRAMS]
        width = max((len(name) for name, _ in shown), default=0)
        for name, text in shown:
            print(f"{name:<{width}}  {text}")
    else:
        print(json.dumps(document, ensure_ascii=False, indent=2 if kind == "json" else None))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, as wide as they need to be."""
    lines = [[name.upper() for name in head], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def size(count: float | None) -> str:
    """Bytes for eyes."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit in ("B", "KiB") else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def span(seconds: float | None) -> str:
    """A span of time for eyes."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def moment(at_ms: float) -> str:
    """A moment for eyes: the clock here, and how long ago."""
    at, now = time.localtime(at_ms / 1000), time.localtime()
    clock = time.strftime("%H:%M:%S" if at[:3] == now[:3] else "%Y-%m-%d %H:%M:%S", at)
    away_s = time.time() - at_ms / 1000
    return f"{clock} ({span(away_s)} ago)" if away_s >= 0 else f"{clock} (in {span(-away_s)})"


def named(name: str, value: object) -> tuple[str, str]:
    """A field's name and value for eyes: its unit is taken off the name and put to the value."""
    words: Callable[[float], str] = moment
    if name == "at_ms" or name.endswith("_at_ms"):
        label = name.removesuffix("_ms")
    else:
        unit = next((unit for unit in _UNITS if name.endswith(unit) and not name.endswith("per_s")), "")
        if not unit:
            return name, _cell(value)
        label, words = name.removesuffix(unit), _UNITS[unit]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return label, words(value) if is_number else _cell(value)  # type: ignore[arg-type]


def seconds_of(text: str) -> float:
    """`30`, `30s`, `5m`, `1h`, `250ms` as seconds. Raises ValueError."""
    for suffix, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        shown = (named(name, inner) for name, inner in value.items() if inner not in (None, "", [], {}))
        return ", ".join(f"{name} {text}" for name, text in shown) or "-"
    if isinstance(value, list):
        between = "; " if any(isinstance(inner, dict) for inner in value) else ", "
        return between.join(_cell(inner) for inner in value) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


_UNITS: Mapping[str, Callable[[float], str]] = {
    "_ms": lambda ms: span(ms / 1000),
    "_s": span,
    "_seconds": span,
    "_bytes": size,
}
