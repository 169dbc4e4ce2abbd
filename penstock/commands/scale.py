"""`penstock scale show | explain | set | pause | resume | history`: how many workers, why, and what people set."""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from penstock.calling import call
from penstock.failures import OK, USAGE, Failure
from penstock.output import Column, Row, moment, show, show_one, span, table
from penstock.parsing import Parser, add_client_flags, add_verb, api_key_of, server_of, span_of

if TYPE_CHECKING:
    from penstock.client import Gateway

_FOLLOW_EVERY_S = 1.0
_PAGE = 200
_SETTABLE = ("min", "max", "target_s")
_NO_POOLS = "No pools: no autoscaler has told of one. Start one: penstock autoscaler --redis URL"


def add_scale(group: Any) -> None:
    """`penstock scale` and its verbs."""
    parser = add_verb(
        group,
        "scale",
        _show,
        help="show pools of workers; explain, set, pause or resume one; what was decided",
        example="penstock scale\npenstock scale explain",
    )
    parser.set_defaults(pool=None)
    add_client_flags(parser)
    verbs = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    shown = add_verb(verbs, "show", _show, help="how many workers there are and should be", example="penstock scale show")
    why = add_verb(
        verbs,
        "explain",
        _explain,
        help="why so many: the last decision, what holds it back, who starts, who crashes",
        example="penstock scale explain\npenstock scale explain demo",
    )
    setting = add_verb(
        verbs,
        "set",
        _set,
        help="set bounds and target of a pool over its settings",
        example="penstock scale set demo --min 1 --max 8\npenstock scale set demo --target 2s\npenstock scale set demo --reset",
    )
    setting.add_argument("--min", type=_count, metavar="N", help="least workers")
    setting.add_argument("--max", type=_count, metavar="N", help="most workers")
    setting.add_argument("--target", type=span_of, metavar="SPAN", help="how long a request should wait at most (5s)")
    setting.add_argument("--reset", action="store_true", help="first take back all that was set; a pause stays")
    pausing = add_verb(verbs, "pause", _pause, help="leave a pool as it is", example="penstock scale pause demo")
    resuming = add_verb(verbs, "resume", _pause, help="scale it again", example="penstock scale resume demo")
    pausing.set_defaults(paused=True)
    resuming.set_defaults(paused=False)
    past = add_verb(
        verbs,
        "history",
        _history,
        help="what was decided and why, the newest last",
        example="penstock scale history demo -n 50\npenstock scale history -f",
    )
    past.add_argument("-n", "--number", type=_some, default=20, metavar="N", help="how many (default 20)")
    past.add_argument("-f", "--follow", action="store_true", help="go on as decisions are made; Ctrl-C ends it")
    for verb in (shown, why, past):
        verb.add_argument("pool", metavar="POOL", nargs="?", help="only this one")
    for verb in (setting, pausing, resuming):
        verb.add_argument("pool", metavar="POOL", help="which one")
    for verb in (shown, why, setting, pausing, resuming, past):
        add_client_flags(verb)


# ---- show


def _show(args: argparse.Namespace) -> int:
    if args.pool and args.output != "table":
        show_one(args.output, call(args, "GET", _path(args.pool)))
        return OK
    rows = [call(args, "GET", _path(args.pool))] if args.pool else call(args, "GET", "/v1/pools")["data"]
    show(args.output, rows, _COLUMNS, empty=_NO_POOLS)
    if args.pool and rows[0]["launches"]:
        print()
        print(table(["launch", "host", "state", "exits", "since", "error"], [_launch(each) for each in rows[0]["launches"]]))
    return OK


def _workers(pool: Row) -> str:
    return ", ".join(f"{count} {state}" for state, count in pool["workers"].items() if count) or "none"


def _leader(pool: Row) -> str:
    leader = pool["leader"]
    return str(leader["id"]) if leader["leads"] else f"nobody (last {leader['id'] or 'none'})"


def _notes(pool: Row) -> str:
    notes = ["paused"] if pool["paused"] else []
    notes += ["dry run"] if pool["decided"]["dry_run"] else []
    override = pool["override"] or {}
    notes += [f"{name} set" for name in _SETTABLE if override.get(name) is not None]
    notes += [f"{pool['crash_loops']} in a crash loop"] if pool["crash_loops"] else []
    notes += ["unplaceable"] if pool["unplaceable"] else []
    return ", ".join(notes).replace("target_s", "target")


def _decided(pool: Row) -> str:
    decided = pool["decided"]
    return f"{_step(decided)} {_ago(decided['at_ms'])} ago: {decided['reason']}"


_COLUMNS: Sequence[Column] = (
    ("pool", lambda p: p["pool"]),
    ("model", lambda p: p["model"]),
    ("workers", _workers),
    ("desired", lambda p: p["desired"]),
    ("bounds", lambda p: f"{p['min']}..{p['max']}"),
    ("leader", _leader),
    ("notes", _notes),
    ("last decision", _decided),
)


def _launch(launch: Row) -> list[str]:
    since = launch["since_at_ms"]
    return [
        launch["id"],
        launch["host"] or "-",
        launch["state"],
        str(launch["exits"]),
        f"{_ago(since)} ago" if since else "-",
        launch["error"] or "-",
    ]


# ---- explain


def _explain(args: argparse.Namespace) -> int:
    pools = [args.pool] if args.pool else [pool["pool"] for pool in call(args, "GET", "/v1/pools")["data"]]
    found = [call(args, "GET", f"{_path(pool)}/explain") for pool in pools]
    if args.output != "table":
        show(args.output, found, (), empty="")
        return OK
    if not found:
        show("table", [], (), empty=_NO_POOLS)
    for number, pool in enumerate(found):
        print(("\n" if number else "") + pool["summary"])
        width = max((len(line["code"]) for line in pool["why"]), default=0)
        for line in pool["why"]:
            print(f"  {line['code']:<{width}}  {line['words']}")
    return OK


# ---- set, pause, resume


def _set(args: argparse.Namespace) -> int:
    given = {"min": args.min, "max": args.max, "target_s": args.target}
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.reset:
        body["reset"] = True
    if not body:
        why, to_do = "none of --min, --max, --target and --reset is there", f"penstock scale set {args.pool} --max 4"
        raise Failure("`penstock scale set` needs something to set", why, to_do, USAGE)
    return _patch(args, body)


def _pause(args: argparse.Namespace) -> int:
    return _patch(args, {"paused": args.paused})


def _patch(args: argparse.Namespace, body: Mapping[str, Any]) -> int:
    pool = call(args, "PATCH", _path(args.pool), body=body)
    if args.output != "table":
        show_one(args.output, pool)
        return OK
    override = pool["override"] or {}
    stands = [f"{name.removesuffix('_s')} {override[name]:g}" for name in _SETTABLE if override.get(name) is not None]
    state = "is paused" if pool["paused"] else "is scaled"
    print(f"{pool['pool']} {state}; set over its settings: {', '.join(stands) or 'nothing'}. It holds from the next decision on.")
    return OK


# ---- history


def _history(args: argparse.Namespace) -> int:
    from penstock.client import Gateway

    path = f"{_path(args.pool)}/history" if args.pool else "/v1/decisions"
    with Gateway(server_of(args), api_key_of(args)) as gateway:
        rows = _newest(gateway, path, args.number)
        if not args.follow:
            show(args.output, rows, _PAST, empty="Nothing was decided yet.")
            return OK
        if args.output == "json":
            raise Failure("--follow has no end to close a JSON document", "", "Use -o jsonl", USAGE)
        for row in _followed(gateway, path, rows):
            print(json.dumps(row, ensure_ascii=False) if args.output == "jsonl" else _line(row), flush=True)
    return OK


def _newest(gateway: "Gateway", path: str, number: int) -> list[Row]:
    """The newest decisions, the newest last."""
    rows: list[Row] = []
    before = None
    while len(rows) < number:
        page = gateway.call("GET", path, params={"limit": min(_PAGE, number - len(rows)), "before": before})
        rows += page["data"]
        before = page["next_before"]
        if before is None:
            break
    return rows[::-1]


def _followed(gateway: "Gateway", path: str, rows: Sequence[Row]) -> Iterator[Row]:
    """Those, and then each new one as it comes, without end."""
    yield from rows
    last = _place(rows[-1]) if rows else (0, 0)
    while True:
        time.sleep(_FOLLOW_EVERY_S)
        new: list[Row] = []
        before = None
        while True:
            page = gateway.call("GET", path, params={"limit": _PAGE, "before": before})
            fresh = [row for row in page["data"] if _place(row) > last]
            new += fresh
            before = page["next_before"]
            if len(fresh) < len(page["data"]) or before is None:
                break
        for row in reversed(new):
            last = _place(row)
            yield row


def _place(row: Row) -> tuple[int, int]:
    ms, _, number = str(row["id"]).partition("-")
    return int(ms), int(number)


_PAST: Sequence[Column] = (
    ("when", lambda d: moment(d["at_ms"])),
    ("pool", lambda d: d["pool"]),
    ("decision", lambda d: _step(d)),
    ("reason", lambda d: d["reason"]),
    ("held by", lambda d: ", ".join(d["limits"])),
    ("not told", lambda d: f"{d['repeated']} like the one before" if d["repeated"] else ""),
)


def _line(row: Row) -> str:
    """One decision as a line of its own: widths of what is still to come are not known."""
    clock = time.strftime("%H:%M:%S", time.localtime(row["at_ms"] / 1000))
    held = f"  ({', '.join(row['limits'])})" if row["limits"] else ""
    return f"{clock}  {row['pool']}  {_step(row)}  {row['reason']}{held}"


def _step(decision: Row) -> str:
    """What it does to the number, like `up 1 -> 3`."""
    before, after = decision["from"], decision["to"]
    dry = "dry run: " if decision["dry_run"] else ""
    return f"{dry}{decision['action']} {after if before == after else f'{before} -> {after}'}"


def _ago(at_ms: float) -> str:
    return span(max(0.0, time.time() - at_ms / 1000))


def _path(pool: str) -> str:
    return f"/v1/pools/{quote(pool, safe='')}"


def _count(text: str) -> int:
    """An argument's `type`: how many workers."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers")
    return int(text)


def _some(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)
