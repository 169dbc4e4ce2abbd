"""`penstock dead list | show | retry | purge`: requests that used up their attempts or killed their workers."""

import argparse
import sys
import time
from typing import Any

from penstock.asking import confirmed
from penstock.failures import OK
from penstock.output import show, show_one, span
from penstock.parsing import Parser, add_client_flags, add_verb, api_key_of, server_of


def add_dead(group: Any) -> None:
    """`penstock dead` and its verbs."""
    parser = add_verb(
        group,
        "dead",
        _list,
        help="list dead letters; show, retry or purge them",
        example="penstock dead\npenstock dead retry s0.4f1c...",
        description="Requests that used up their attempts or killed their workers; kept for 7 days, their input included.",
    )
    parser.set_defaults(model=None, limit=20)
    add_client_flags(parser)
    verbs = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    listing = add_verb(verbs, "list", _list, help="which there are, newest first", example="penstock dead list --model demo")
    listing.add_argument("--limit", type=int, default=20, metavar="N", help="how many (default 20)")
    one = add_verb(
        verbs,
        "show",
        _show,
        help="one, with its request",
        example="penstock dead show s0.4f1c...\npenstock dead show s0.4f1c... --input -o json",
    )
    one.add_argument("--input", action="store_true", help="also what was asked: the prompt")
    again = add_verb(verbs, "retry", _retry, help="submit it again as a new request", example="penstock dead retry s0.4f1c...")
    purging = add_verb(
        verbs,
        "purge",
        _purge,
        help="forget one, those of a model, or all",
        example="penstock dead purge s0.4f1c...\npenstock dead purge --model demo\npenstock dead purge --yes",
    )
    purging.add_argument("--yes", action="store_true", help="do not ask")
    for verb in (one, again):
        verb.add_argument("id", metavar="ID", help="the request's id")
    purging.add_argument("id", metavar="ID", nargs="?", help="the request's id; none: all")
    for verb in (listing, purging):
        verb.add_argument("--model", help="only this model's")
    for verb in (listing, one, again, purging):
        add_client_flags(verb)


def _list(args: argparse.Namespace) -> int:
    rows = _call(args, "GET", "/v1/dead", params={"model": args.model, "limit": args.limit})["data"]
    columns = (
        ("id", lambda d: d["id"]),
        ("model", lambda d: d["model"]),
        ("code", lambda d: d["code"]),
        ("charged", lambda d: d["charged"]),
        ("crashes", lambda d: d["crashes"]),
        ("worker", lambda d: d["worker"]),
        ("age", lambda d: span(max(0.0, time.time() - d["at_ms"] / 1000))),
        ("message", lambda d: d["message"]),
    )
    show(args.output, rows, columns, empty="No dead letters.")
    return OK


def _show(args: argparse.Namespace) -> int:
    show_one(args.output, _call(args, "GET", f"/v1/dead/{args.id}", params={"input": 1 if args.input else None}))
    return OK


def _retry(args: argparse.Namespace) -> int:
    show_one(args.output, _call(args, "POST", f"/v1/dead/{args.id}/retry"))
    return OK


def _purge(args: argparse.Namespace) -> int:
    if args.id:
        show_one(args.output, _call(args, "DELETE", f"/v1/dead/{args.id}"))
        return OK
    which = f"all dead letters of {args.model}" if args.model else "all dead letters"
    if not args.yes and not confirmed(f"Forget {which}?"):
        print("Nothing was forgotten.", file=sys.stderr)
        return OK
    show_one(args.output, _call(args, "POST", "/v1/dead/purge", params={"model": args.model}))
    return OK


def _call(args: argparse.Namespace, method: str, path: str, **kwargs: Any) -> Any:
    from penstock.client import Gateway

    with Gateway(server_of(args), api_key_of(args)) as gateway:
        return gateway.call(method, path, **kwargs)
