"""Reading a JSON body within limits, before any work is done with it. Never here: what its fields mean (fields.py)."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from dispatch.errors import PenstockError

MAX_DEPTH = 32
_DISCARD_BYTES = 16 * 1024 * 1024
_DISCARD_S = 2.0


async def read_body(receive: Receive, headers: Mapping[str, str], max_bytes: int) -> bytes:
    """The raw body. Counts what arrives, whatever Content-Length says. Raises ClientDisconnect when its client leaves."""
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise PenstockError(
            "unsupported_media_type",
            f"The body is compressed ({encoding[:40]!r}).",
            hint="Send it without Content-Encoding.",
            param="content-encoding",
        )
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (media_type.startswith("application/") and media_type.endswith("+json")):
        raise PenstockError(
            "unsupported_media_type",
            f"The body's type is {media_type[:60]!r}, not JSON.",
            hint="Send `Content-Type: application/json`.",
            param="content-type",
        )
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        await _discard(receive)
        raise _too_large(max_bytes)
    body, more = await _piece(receive)
    if more:
        pieces, size = [body], len(body)
        while more and size <= max_bytes:
            piece, more = await _piece(receive)
            pieces.append(piece)
            size += len(piece)
        if more:
            await _discard(receive)
            raise _too_large(max_bytes)
        body = b"".join(pieces)
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


async def _piece(receive: Receive) -> tuple[bytes, bool]:
    """The next piece of a body, and whether there is more."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _discard(receive: Receive) -> None:
    """Read on for a while: a client that is still sending when the connection closes never sees why."""
    discarded, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while more and discarded <= _DISCARD_BYTES:
                piece, more = await _piece(receive)
                discarded += len(piece)


def parse_object(body: bytes) -> dict[str, Any]:
    """A body as a JSON object. NaN, Infinity, lone surrogates and numbers beyond a double are no JSON."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PenstockError("invalid_request", f"The body is not valid JSON: {error}.", hint="Send one JSON object.") from error
    except RecursionError as error:
        raise _too_deep() from error
    if not isinstance(value, dict):
        raise PenstockError(
            "invalid_request", f"The body is a JSON {type(value).__name__}, not an object.", hint="Send one JSON object."
        )
    # Fewer opening brackets than the limit cannot nest deeper than it: most bodies need no walk.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and depth_of(value, MAX_DEPTH + 1) > MAX_DEPTH:
        raise _too_deep()
    return value


def depth_of(value: Any, stop_at: int) -> int:
    """How deep a JSON value nests; looks no deeper than `stop_at`."""
    depth = 0
    level = [value]
    while level and depth < stop_at:
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        depth += 1
    return depth


def _too_large(max_bytes: int) -> PenstockError:
    return PenstockError(
        "payload_too_large",
        f"The body is larger than {max_bytes} bytes.",
        hint="Send less, or let the operator raise PENSTOCK_GATEWAY__MAX_BODY_BYTES.",
        extra={"max_bytes": max_bytes},
    )


def _too_deep() -> PenstockError:
    return PenstockError("invalid_request", f"The body nests deeper than {MAX_DEPTH} levels.", hint="Flatten it.")
