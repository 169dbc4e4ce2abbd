"""The verbs that look at the whole: `penstock ps` (workers) and `penstock queues`."""

import argparse
import sys
from typing import Any
from urllib.parse import quote

from penstock.asking import confirmed
from penstock.failures import OK
from penstock.output import Row, show, show_one, size, span
from penstock.parsing import Parser, add_client_flags, add_verb, api_key_of, server_of


def add_ps(group: Any) -> None:
    """`penstock ps`."""
    parser = add_verb(group, "ps", _ps, help="list workers", example="penstock ps\npenstock ps -o json")
    add_client_flags(parser)


def add_queues(group: Any) -> None:
    """`penstock queues`, and pause, resume, purge."""
    parser = add_verb(
        group,
        "queues",
        _queues,
        help="list queues; pause, resume or purge one",
        example="penstock queues\npenstock queues pause demo",
    )
    add_client_flags(parser)
    verbs = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for name, help in (
        ("list", "every model's waiting line"),
        ("pause", "grant nothing more of a model"),
        ("resume", "go on"),
        ("purge", "cancel all that waits"),
    ):
        verb = add_verb(
            verbs,
            name,
            _queues if name == "list" else _act,
            help=help,
            example=f"penstock queues {name}{'' if name == 'list' else ' demo'}",
        )
        verb.set_defaults(act=name)
        if name != "list":
            verb.add_argument("model", metavar="MODEL", help="whose queue")
        if name == "purge":
            verb.add_argument("--yes", action="store_true", help="do not ask")
        add_client_flags(verb)


def _ps(args: argparse.Namespace) -> int:
    columns = (
        ("id", lambda w: w["id"]),
        ("host", lambda w: w.get("host")),
        ("pid", lambda w: w.get("pid")),
        ("model", lambda w: w.get("model")),
        ("engine", lambda w: w.get("engine")),
        ("state", _state),
        ("gpu", lambda w: (w.get("gpu") or {}).get("name")),
        ("free", lambda w: size((w.get("gpu") or {}).get("free_bytes"))),
        ("running", lambda w: w.get("running")),
        ("room", _room),
        ("probe", _probe),
        ("seen", lambda w: span(w["heartbeat_age_ms"] / 1000)),
    )
    show(
        args.output,
        _call(args, "GET", "/v1/workers")["data"],
        columns,
        empty="No workers. Start one: penstock worker --redis URL",
    )
    return OK


def _state(worker: Row) -> str:
    """Of a worker in trouble the reason, too."""
    return f"{worker.get('state')} {worker.get('progress') or worker.get('error') or ''}".strip()


def _room(worker: Row) -> str:
    """KV tokens that fit now, of those it could hold; and what bounds it, if that is not its engine."""
    room = worker.get("room")
    if not room:
        return "-"
    bound = "" if room["bound_by"] == "engine" else f" ({room['bound_by']})"
    return f"{max(0, room['room_tokens'])} of {room['capacity_tokens'] - room['headroom_tokens']}{bound}"


def _probe(worker: Row) -> str:
    probe = worker.get("probe")
    return f"{'ok' if probe['ok'] else 'FAILED'} {span(probe['age_ms'] / 1000)} ago" if probe else "-"


def _queues(args: argparse.Namespace) -> int:
    columns = (
        ("model", lambda q: q.get("model")),
        ("waiting", lambda q: q.get("backlog")),
        ("oldest", lambda q: span(q["oldest_wait_ms"] / 1000)),
        ("running", lambda q: q.get("running")),
        ("paused", lambda q: q.get("paused")),
    )
    show(args.output, _call(args, "GET", "/v1/queues")["data"], columns, empty="No queues yet: no worker has served a model.")
    return OK


def _act(args: argparse.Namespace) -> int:
    if args.act == "purge" and not args.yes and not confirmed(f"Cancel all that waits for {args.model}?"):
        print("Nothing was purged.", file=sys.stderr)
        return OK
    show_one(args.output, _call(args, "POST", f"/v1/queues/{quote(args.model)}/{args.act}") or {})
    return OK


def _call(args: argparse.Namespace, method: str, path: str) -> Any:
    from penstock.client import Gateway

    with Gateway(server_of(args), api_key_of(args)) as gateway:
        return gateway.call(method, path)
