"""`penstock chat`: talk to a model through the queue."""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from penstock.failures import FAILED, INTERRUPTED, OK, TIMEOUT, Failure
from penstock.parsing import add_client_flags, add_verb, api_key_of, server_of, span_of

if TYPE_CHECKING:
    from penstock.client import Gateway

_REQUEST_HEADER = "x-penstock-request"


def add_chat(group: Any) -> None:
    """`penstock chat [PROMPT]`."""
    parser = add_verb(
        group,
        "chat",
        run_chat,
        help="talk to a model; without a prompt, a conversation",
        example='penstock chat "Tell me of the sea"\npenstock chat --model demo --max-tokens 200',
    )
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="what to say; `-` reads it from stdin; without it: a conversation"
    )
    parser.add_argument("--model", default="demo", help="which model (default demo)")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    parser.add_argument("--detach", action="store_true", help="let the request go on when Ctrl-C ends this command")
    parser.add_argument("--timeout", type=span_of, metavar="SPAN", help="give up after this long (30s, 5m; exit code 4)")
    add_client_flags(parser, output=False)


def run_chat(args: argparse.Namespace) -> int:
    """One answer, or one after another until Ctrl-D."""
    from penstock.client import Gateway

    messages: list[dict[str, str]] = [{"role": "system", "content": args.system}] if args.system else []
    with Gateway(server_of(args), api_key_of(args)) as gateway:
        prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
        if prompt is not None:
            return _answer(gateway, args, [*messages, {"role": "user", "content": prompt}])[0]
        print(f"Talking to {args.model}. An empty line or Ctrl-D ends it.", file=sys.stderr)
        while True:
            try:
                prompt = input("> " if sys.stdin.isatty() else "")
            except EOFError:
                return OK
            if not prompt.strip():
                return OK
            messages.append({"role": "user", "content": prompt})
            code, text = _answer(gateway, args, messages)
            if code != OK:
                return code
            messages.append({"role": "assistant", "content": text})


def _answer(gateway: "Gateway", args: argparse.Namespace, messages: list[dict[str, str]]) -> tuple[int, str]:
    body: dict[str, Any] = {"model": args.model, "messages": messages, "stream": True}
    if args.max_tokens is not None:
        body["max_tokens"] = args.max_tokens
    if args.temperature is not None:
        body["temperature"] = args.temperature
    headers = {"x-penstock-on-disconnect": "continue"} if args.detach else {}
    deadline = time.monotonic() + args.timeout if args.timeout else None
    request, text = "", ""
    try:
        for event in gateway.stream("/v1/chat/completions", body, headers, deadline=deadline):
            if event.kind == "headers":
                request = event.json().get(_REQUEST_HEADER, "")
                continue
            piece = _piece(event.json(), request)
            text += piece
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        _cancel(gateway, request, args.detach)
        return INTERRUPTED, text
    except Failure as failure:
        if failure.exit_code == TIMEOUT:
            _cancel(gateway, request, args.detach)
        raise
    sys.stdout.write("\n")
    return OK, text


def _piece(chunk: dict[str, Any], request: str) -> str:
    if error := chunk.get("error"):
        hint = error.get("hint") or (f"penstock request show {request}" if request else "")
        raise Failure("The request failed", f"{error.get('message', json.dumps(error))} ({error.get('code')})", hint, FAILED)
    return "".join((choice.get("delta") or {}).get("content") or "" for choice in chunk.get("choices") or ())


def _cancel(gateway: "Gateway", request: str, detach: bool) -> None:
    """Closing the stream would cancel it too, after the grace for a reader that comes back."""
    if not request:
        return
    if detach:
        print(f"The request goes on: penstock request stream {request}", file=sys.stderr)
        return
    try:
        gateway.call("DELETE", f"/v1/requests/{request}")
    except Failure as failure:
        print(f"penstock: could not cancel {request}: {failure.what}", file=sys.stderr)
