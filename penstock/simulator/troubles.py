"""`--kill` and `--freeze`: what a text says will go wrong. Pure. Never here: what comes of it (simulation.py)."""

import re
from collections.abc import Sequence

from penstock.failures import USAGE, Failure
from penstock.output import seconds_of
from penstock.simulator.fleet import Member
from penstock.simulator.state import Trouble

BACK_S = 10.0
"""A killed worker is back, empty, after this long: its process starts anew and loads its model from memory."""
FROZEN_S = 10.0


def troubles_of(kind: str, text: str, fleet: Sequence[Member]) -> tuple[Trouble, ...]:
    """`every 60s`, `A10-2@30s`, `A10-2@30s+5s` (for 5 s), several with commas between."""
    return tuple(_trouble(kind, part.strip(), fleet) for part in text.split(","))


def _trouble(kind: str, text: str, fleet: Sequence[Member]) -> Trouble:
    what = f"--{kind} does not understand {text!r}"
    to_do = f"Say `every 60s` (one by lot) or `{fleet[0].name}@30s`; +5s after it: for how long"
    match = re.fullmatch(r"(?:every[ :=]+|(?P<worker>[\w-]+)@)(?P<at>[\w.]+)(?:\+(?P<span>[\w.]+))?", text)
    if not match:
        raise Failure(what, "it names no time", to_do, USAGE)
    try:
        at_s = seconds_of(match["at"])
        span_s = seconds_of(match["span"]) if match["span"] else BACK_S if kind == "kill" else FROZEN_S
    except ValueError as error:
        raise Failure(what, "that is no span of time", to_do, USAGE) from error
    worker = match["worker"] or ""
    if worker and worker not in {m.name for m in fleet}:
        names = ", ".join(m.name for m in fleet[:8]) + (", ..." if len(fleet) > 8 else "")
        raise Failure(what, f"there is no worker {worker}; there are {names}", to_do, USAGE)
    if not at_s > 0 or not span_s > 0:
        raise Failure(what, "a span is longer than nothing", to_do, USAGE)
    return Trouble(kind, at_s, span_s, worker, every=not worker)
