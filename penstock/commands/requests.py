"""`penstock request show | why | stream | cancel | retry`, and `penstock requests`."""

import argparse
import time
from collections.abc import Mapping
from typing import Any

from penstock.commands.submit import follow
from penstock.failures import OK
from penstock.output import show, show_one, span, table
from penstock.parsing import Parser, add_client_flags, add_verb, api_key_of, server_of


def add_request(group: Any) -> None:
    """`penstock request VERB ID`."""
    parser = add_verb(
        group,
        "request",
        _help,
        help="show, explain, stream, cancel or retry one request",
        example="penstock request show s0.4f1c...",
    )
    verbs = parser.add_subparsers(metavar="COMMAND", parser_class=Parser, required=True)
    for name, run, help in (
        ("show", _show, "where it stands"),
        ("why", _why, "why it waits: what it needs, who was looked at, when it may start; or why that worker has it"),
        ("stream", _stream, "its answer, from the start or from an event on, to its end"),
        ("cancel", _cancel, "end it now, waiting or running"),
        ("retry", _retry, "submit it again as a new request"),
    ):
        verb = add_verb(verbs, name, run, help=help, example=f"penstock request {name} s0.4f1c...")
        verb.add_argument("id", metavar="ID", help="the request's id")
        if name == "stream":
            verb.add_argument("--after", default="", metavar="EVENT_ID", help="only what came after this event")
        add_client_flags(verb)


def add_requests(group: Any) -> None:
    """`penstock requests`."""
    parser = add_verb(
        group,
        "requests",
        _list,
        help="list requests, newest first",
        example="penstock requests --status running\npenstock requests -o jsonl",
    )
    parser.add_argument(
        "--status", choices=["queued", "running", "completed", "failed", "cancelled", "expired"], help="only these"
    )
    parser.add_argument("--model", help="only this model's")
    parser.add_argument("--worker", help="only this worker's")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="how many (default 20)")
    add_client_flags(parser)


def _help(args: argparse.Namespace) -> int:
    args.parser.print_help()
    return OK


def _show(args: argparse.Namespace) -> int:
    document = _call(args, "GET", f"/v1/requests/{args.id}")
    if args.output == "table":
        story, webhook = document.pop("story", []), document.pop("webhook", None)
        show_one(args.output, document)
        for attempt in story:
            print(_told(attempt))
        for line in _webhook_lines(webhook) if webhook else ():
            print(line)
        if document.get("status") == "failed":
            error = _call(args, "GET", f"/v1/requests/{args.id}/result").get("error") or {}
            print(f"failed: {error.get('message', 'it does not say why')} ({error.get('code', 'no code')})")
    else:
        show_one(args.output, document)
    return OK


def _why(args: argparse.Namespace) -> int:
    document = _call(args, "GET", f"/v1/requests/{args.id}/explain")
    if args.output != "table":
        show_one(args.output, document)
        return OK
    print(document["summary"])
    needs = document["needs"]
    parts = [f"{needs['cost_tokens']:,} KV tokens"]
    if needs["prompt_tokens"]:
        parts[0] += f" (prompt {needs['prompt_tokens']:,}, {needs['answer_tokens']:,} for the answer)"
    parts += [f"strategy {needs['strategy']}"] if needs["strategy"] else []
    print(f"needs     {', '.join(parts)}")
    if kept := document.get("kept_by"):
        print(f"kept      {kept['words']}")
    if start := document.get("expected_start"):
        print(f"start     {_in(start['seconds'])}: {start['basis']}")
    if never := document.get("impossible"):
        print(f"do        {never['to_do']}")
    for meeting in document["meetings"]:
        print(f"{time.strftime('%H:%M:%S', time.localtime(meeting['at_ms'] / 1000))}  {meeting['words']}")
    if workers := document.get("workers"):
        print(table(["worker", "why not", "code"], [[w["id"], w["words"], w["code"]] for w in workers]))
    if others := document.get("others"):
        print("and", ", ".join(f"{count} {code}" for code, count in others.items()))
    return OK


def _in(seconds: float | None) -> str:
    return "not known" if seconds is None else f"in about {span(seconds)}" if seconds else "now"


def _told(attempt: Mapping[str, Any]) -> str:
    """One earlier attempt as a line of the story."""
    began, left = attempt["begun_at_ms"], attempt["left_at_ms"]
    had = f"ran {span((left - began) / 1000)}" if began else "had not begun"
    return f"attempt {attempt['attempt']} on {attempt['worker']}: {had}, left at seq {attempt['seq']}: {attempt['why']}"


def _webhook_lines(webhook: Mapping[str, Any]) -> list[str]:
    """Who is told of the ending, where that stands, and each try."""
    stands = {None: "not yet owed", "given_up": "given up"}.get(webhook["state"], webhook["state"])
    lines = [f"webhook {webhook['url']} on {', '.join(webhook['events'])}: {stands}"]
    first = webhook["tried"] - len(webhook["tries"]) + 1
    for number, each in enumerate(webhook["tries"], first):
        at = time.strftime("%H:%M:%S", time.localtime(each["at_ms"] / 1000))
        lines.append(f"try {number} at {at}: {each['error'] or each['status']} after {each['took_ms']} ms")
    return lines


def _stream(args: argparse.Namespace) -> int:
    from penstock.client import Gateway

    with Gateway(server_of(args), api_key_of(args)) as gateway:
        return follow(gateway, args.id, args.output, live=args.output != "json", after=args.after)


def _cancel(args: argparse.Namespace) -> int:
    show_one(args.output, _call(args, "DELETE", f"/v1/requests/{args.id}"))
    return OK


def _retry(args: argparse.Namespace) -> int:
    show_one(args.output, _call(args, "POST", f"/v1/requests/{args.id}/retry"))
    return OK


def _list(args: argparse.Namespace) -> int:
    params = {"status": args.status, "model": args.model, "worker": args.worker, "limit": args.limit}
    rows = _call(args, "GET", "/v1/requests", params=params)["data"]
    columns = (
        ("id", lambda r: r["id"]),
        ("status", lambda r: r.get("status")),
        ("model", lambda r: r.get("model")),
        ("priority", lambda r: r.get("priority")),
        ("worker", lambda r: r.get("worker")),
        ("attempt", lambda r: r.get("attempt")),
        ("age", lambda r: _age(r["created_at_ms"])),
    )
    show(args.output, rows, columns, empty="No requests.")
    return OK


def _age(created_at_ms: int) -> str:
    return span(max(0.0, time.time() - created_at_ms / 1000))


def _call(args: argparse.Namespace, method: str, path: str, **kwargs: Any) -> Any:
    from penstock.client import Gateway

    with Gateway(server_of(args), api_key_of(args)) as gateway:
        return gateway.call(method, path, **kwargs)
