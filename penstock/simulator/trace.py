"""What arrives: read from a file, or made up; scaled in time and gathered into bursts. Never here: who serves it.

The format is that of the public Azure traces: TIMESTAMP, ContextTokens, GeneratedTokens; a column Session may follow.
"""

import csv
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from penstock.failures import USAGE, Failure

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_SESSION = "Session"
_EPOCH = datetime(2000, 1, 1)  # noqa: DTZ001 - traces know no time zone


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when it comes, what is to be prefilled, what will be decoded."""

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    session: str = ""


def read_trace(path: Path) -> list[Arrival]:
    """The file's requests in the order of their arrival; the first comes at 0."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise _bad(path, 1, f"there is no column {missing[0]}")
            found = [_arrival(path, rows.line_num, row) for row in rows]
    except OSError as error:
        raise Failure(f"cannot read the trace {path}", str(error.strerror), "Give --trace a CSV file", USAGE) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _bad(path, 1, "it is no CSV text") from error
    if not found:
        raise _bad(path, 1, "it has no request")
    found.sort(key=lambda a: a.at_s)
    start_s = found[0].at_s
    return [replace(a, at_s=a.at_s - start_s) for a in found]


def repeated(trace: Sequence[Arrival], count: int) -> list[Arrival]:
    """`count` requests: the trace's first ones, played again from the start when it is over."""
    span_s = trace[-1].at_s + mean_gap_s(trace)
    return [replace(trace[i % len(trace)], at_s=trace[i % len(trace)].at_s + i // len(trace) * span_s) for i in range(count)]


def scaled(trace: Sequence[Arrival], requests_per_s: float) -> list[Arrival]:
    """The same arrivals at this mean rate: time runs slower or faster, bursts stay bursts."""
    span_s = trace[-1].at_s + mean_gap_s(trace)
    factor = len(trace) / requests_per_s / span_s if span_s > 0 else 1.0
    return [replace(a, at_s=a.at_s * factor) for a in trace]


def gathered(trace: Sequence[Arrival], every_s: float) -> list[Arrival]:
    """Each waits for the next multiple of `every_s`: all of a span arrive at once."""
    return [replace(a, at_s=math.ceil(a.at_s / every_s) * every_s) for a in trace]


def mean_gap_s(trace: Sequence[Arrival]) -> float:
    """Seconds between two arrivals, on average."""
    return trace[-1].at_s / (len(trace) - 1) if len(trace) > 1 else 0.0


def made_up(count: int, seed: int, *, requests_per_s: float = 5.0) -> list[Arrival]:
    """Conversations: Poisson arrivals; prompts from a line to many pages (log-normal), answers of about 200 tokens.

    The shape, not the data, of public conversation traces: for tests and for a trace that no score was tuned on.
    """
    rng = random.Random(seed)
    at_s = 0.0
    arrivals = []
    for _ in range(count):
        at_s += rng.expovariate(requests_per_s)
        prompt_tokens = min(max(8, int(rng.lognormvariate(6.5, 1.1))), 14_000)
        answer_tokens = min(max(2, int(rng.lognormvariate(5.0, 0.8))), 1_500)
        arrivals.append(Arrival(at_s, prompt_tokens, answer_tokens, f"s{rng.randrange(max(1, count // 5))}"))
    return [replace(a, at_s=a.at_s - arrivals[0].at_s) for a in arrivals]


def write_trace(path: Path, trace: Sequence[Arrival]) -> None:
    """As `read_trace` reads it; time 0 is the start of the year 2000."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow([*COLUMNS, _SESSION])
        for a in trace:
            moment = (_EPOCH + timedelta(seconds=a.at_s)).isoformat(sep=" ")
            rows.writerow([moment, a.prompt_tokens, a.answer_tokens, a.session])


def _arrival(path: Path, line: int, row: dict[str, str]) -> Arrival:
    try:
        at_s = _seconds(row["TIMESTAMP"])
        prompt_tokens, answer_tokens = int(row["ContextTokens"]), int(row["GeneratedTokens"])
    except (TypeError, ValueError) as error:
        raise _bad(path, line, "not a time and two whole numbers of tokens") from error
    if prompt_tokens < 1 or answer_tokens < 1:
        raise _bad(path, line, "a prompt and an answer have at least one token")
    return Arrival(at_s, prompt_tokens, answer_tokens, row.get(_SESSION) or "")


def _seconds(text: str) -> float:
    """A date and time with up to nine decimals, or plain seconds."""
    head, dot, decimals = text.partition(".")
    if "-" not in head.lstrip("-") and ":" not in head:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return value
    moment = datetime.fromisoformat(head)
    return (moment - _EPOCH.replace(tzinfo=moment.tzinfo)).total_seconds() + (float("0." + decimals) if dot else 0.0)


def _bad(path: Path, line: int, why: str) -> Failure:
    return Failure(
        f"the trace {path} cannot be used",
        f"line {line}: {why}",
        f"A trace is a CSV file with the columns {', '.join(COLUMNS)}",
        USAGE,
    )
