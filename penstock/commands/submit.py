"""`penstock submit`: one request, or a file of them, into the queue."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.failures import FAILED, INTERRUPTED, OK, TIMEOUT, USAGE, Failure
from penstock.parsing import add_client_flags, add_verb, api_key_of, server_of, span_of

if TYPE_CHECKING:
    from penstock.client import Gateway


def add_submit(group: Any) -> None:
    """`penstock submit`."""
    parser = add_verb(
        group,
        "submit",
        run_submit,
        help="submit a request and wait for its answer",
        example=(
            'penstock submit "Tell me of the sea" --stream\n'
            'penstock submit --input \'{"messages":[{"role":"user","content":"hi"}]}\' --priority high\n'
            "penstock submit --input @request.json --detach -o json"
        ),
    )
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to ask; `-` reads it from stdin")
    parser.add_argument("--input", metavar="JSON", help="the whole body instead: JSON, @FILE or `-`")
    parser.add_argument("--model", help="which model (default demo, or the body's)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    parser.add_argument("--priority", choices=["high", "normal", "low"], help="which line it waits in")
    parser.add_argument("--strategy", metavar="NAME", help="what chooses its worker (default: the model's; docs/strategies.md)")
    parser.add_argument("--session", metavar="ID", help="what it belongs to, for the strategy `session`")
    parser.add_argument("--webhook", metavar="URL", help="who is told, signed, when it has ended (docs/webhooks.md)")
    parser.add_argument("--deadline", type=span_of, metavar="SPAN", help="drop it after this long (30s, 5m)")
    parser.add_argument("--idempotency-key", metavar="KEY", help="the same key and body again is the same request")
    parser.add_argument("--stream", action="store_true", help="print the answer while it comes")
    parser.add_argument("--detach", action="store_true", help="print the id at once; Ctrl-C and a shell's end leave it running")
    parser.add_argument(
        "--timeout", type=span_of, metavar="SPAN", help="stop waiting after this long (exit code 4); the request goes on"
    )
    add_client_flags(parser)


def run_submit(args: argparse.Namespace) -> int:
    """Submit, then follow its events to the end unless detached."""
    from penstock.client import Gateway

    body = _body(args)
    headers = {"idempotency-key": args.idempotency_key} if args.idempotency_key else {}
    with Gateway(server_of(args), api_key_of(args)) as gateway:
        accepted = gateway.call("POST", "/v1/requests", body=body, headers=headers)
        request = str(accepted["id"])
        if args.detach:
            print(request if args.output == "table" else json.dumps(accepted, ensure_ascii=False))
            return OK
        try:
            return follow(gateway, request, args.output, live=args.stream, timeout_s=args.timeout)
        except KeyboardInterrupt:
            gateway.call("DELETE", f"/v1/requests/{request}")
            print(f"penstock: cancelled {request}", file=sys.stderr)
            return INTERRUPTED
        except Failure as failure:
            still = "it goes on: " if failure.exit_code == TIMEOUT else ""
            failure.to_do = failure.to_do or f"{still}`penstock request show {request}` tells where it stands"
            raise


def follow(gateway: "Gateway", request: str, output: str, *, live: bool, timeout_s: float | None = None, after: str = "") -> int:
    """Print a request's answer to its end; the exit code its ending means."""
    deadline = time.monotonic() + timeout_s if timeout_s else None
    as_it_comes = live and output != "json"
    pieces: list[Any] = []
    end: dict[str, Any] = {}
    for event in gateway.events(request, after=after, deadline=deadline):
        if event.kind == "end":
            end = event.json()
        elif event.kind == "error":
            error = event.json()["error"]
            raise Failure(f"The stream of {request} cannot go on", error.get("message", ""), error.get("hint", ""), FAILED)
        elif event.kind == "rewind":
            # What came before is void: Redis lost it, and the whole answer follows again.
            pieces.clear()
            if as_it_comes:
                print("\n[the answer starts again]", file=sys.stderr)
        elif event.kind == "chunk":
            pieces.append(event.json())
            if as_it_comes and output == "table":
                sys.stdout.write(_text(pieces[-1]))
                sys.stdout.flush()
            elif as_it_comes:
                print(json.dumps({"id": event.id, "event": event.kind, **pieces[-1]}, ensure_ascii=False), flush=True)
    if end:
        end = {"status": end.pop("state", None), **end}  # as all other pages say it
    else:  # the client had it all: only how it ended is missing
        end = {"status": gateway.call("GET", f"/v1/requests/{request}")["status"]}
    if output == "table":
        print("" if live else "".join(_text(piece) for piece in pieces))
    elif output == "jsonl" and live:
        print(json.dumps({"event": "end", **end}, ensure_ascii=False))
    else:
        text = "".join(_text(piece) for piece in pieces if "text" in piece)
        outputs = [piece["output"] for piece in pieces if "output" in piece]
        document = {"id": request, **end, "text": text, **({"outputs": outputs} if outputs else {})}
        print(json.dumps(document, ensure_ascii=False, indent=2 if output == "json" else None))
    status = end.get("status")
    if status == "completed":
        return OK
    error = end.get("error") or {}
    why = error.get("message") or ""
    raise Failure(f"The request {request} {_ended(status)}", f"{why} ({error['code']})" if error.get("code") else why, "", FAILED)


def _ended(status: object) -> str:
    return {"failed": "failed", "cancelled": "was cancelled", "expired": "expired"}.get(str(status), f"ended as {status}")


def _text(piece: dict[str, Any]) -> str:
    if "text" in piece:
        return str(piece["text"])
    return json.dumps(piece["output"], ensure_ascii=False) + "\n" if "output" in piece else ""


def _body(args: argparse.Namespace) -> dict[str, Any]:
    if (args.prompt is None) == (args.input is None):
        why = "there are both" if args.input is not None else "there is neither"
        raise Failure("`penstock submit` needs a PROMPT or --input", why, 'penstock submit "Tell me of the sea"', USAGE)
    if args.input is not None:
        body = _document(args.input)
    else:
        text = sys.stdin.read() if args.prompt == "-" else args.prompt
        body = {"messages": [{"role": "user", "content": text}]}
    if args.model or "model" not in body:
        body["model"] = args.model or "demo"
    if args.max_tokens is not None:
        body["max_tokens"] = args.max_tokens
    if args.priority:
        body["priority"] = args.priority
    if args.strategy:
        body["strategy"] = args.strategy
    if args.session:
        body["session"] = args.session
    if args.webhook:
        body["webhook"] = args.webhook
    if args.deadline is not None:
        body["deadline_seconds"] = args.deadline
    return body


def _document(source: str) -> dict[str, Any]:
    try:
        text = (
            sys.stdin.read() if source == "-" else Path(source[1:]).read_text(encoding="utf-8") if source[:1] == "@" else source
        )
        body = json.loads(text)
    except OSError as error:
        raise Failure(f"{source[1:]} cannot be read", error.strerror or "", "Name a readable file after the @", USAGE) from error
    except ValueError as error:
        raise Failure("--input is not valid JSON", str(error), "Give one JSON object, or @FILE", USAGE) from error
    if not isinstance(body, dict):
        raise Failure("--input is not a JSON object", f"it is a {type(body).__name__}", 'Like {"messages": [...]}', USAGE)
    return body
