"""What a webhook is: its URL, what is kept of its tries, and the event it tells. Pure.

Never here: its signature (signing.py), sending it (autoscaler/webhooks), where it is kept (outbox.py).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from dispatch.addresses import is_address, is_public
from dispatch.errors import PenstockError
from dispatch.states import ENDINGS, RequestState

MOST_CHARACTERS = 2048
EVENTS = tuple(state for state in RequestState if state in ENDINGS)
# Printable ASCII: no spaces or control characters, and not what some parsers take for a slash or a quote.
_URL = re.compile(r"[!#-;=?-\[\]_a-z~]+")


class WebhookState(StrEnum):
    """Where the webhook of an ended request is."""

    OWED = "owed"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Try:
    """One try to deliver it: the answer's HTTP status (0: there was none), and in a word why it did not work."""

    at_ms: int
    took_ms: int
    status: int
    error: str


@dataclass(frozen=True, slots=True)
class Webhook:
    """What is owed for one ending. `tried` counts all tries, `tries` holds the last ones."""

    request: str
    url: str
    state: WebhookState
    ending: RequestState
    model: str
    created_at_ms: int
    ended_at_ms: int
    tried: int
    tries: tuple[Try, ...]


def check_url(url: str, *, allow_private: bool) -> str:
    """The URL, if a webhook may go there as far as can be said before its name is resolved. Raises PenstockError."""
    if len(url) > MOST_CHARACTERS:
        raise _bad_url(f"longer than {MOST_CHARACTERS} characters", "Use a shorter URL.")
    if not _URL.fullmatch(url):
        raise _bad_url("empty, or holds characters that do not belong in a URL", "Percent-encode them; write names as punycode.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _bad_url("no URL that can be read", "Send https://host/path.") from error
    if parts.scheme not in ("http", "https") or not host:
        raise _bad_url("not an http or https URL with a host", "Send https://host/path.")
    if "@" in parts.netloc:
        raise _bad_url("holds credentials", "Take them out; verify the signature of what arrives instead.")
    if parts.fragment or url.endswith("#"):
        raise _bad_url("holds a fragment", "Take out what follows #.")
    if port == 0:
        raise _bad_url("has port 0", "Name the port, or leave it out.")
    if "%" in host:
        raise _bad_url("has a host with %", "Use a plain name or address.")
    if not allow_private and is_address(host) and not is_public(host):
        raise _bad_url("leads to an address that is not on the open internet", "Send one that is.")
    return url


def events_of(wanted: Collection[str]) -> str:
    """Endings as they are stored: "" for all."""
    return "" if set(wanted) >= set(EVENTS) else " ".join(event for event in EVENTS if event in wanted)


def masked(url: str) -> str:
    """The URL without its query, which often holds a secret."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="...")) if parts.query else url


def host_of(url: str) -> str:
    """What a log may say of a URL, and what stands for its receiver."""
    return urlsplit(url).hostname or ""


def event_id(request: str) -> str:
    """The event of a request's ending: the same over all tries, for a request ends once."""
    return f"evt_{request.rpartition('.')[2]}"


def event_of(webhook: Webhook) -> bytes:
    """The body. It says that a request ended and how, never what was asked or answered."""
    data: Mapping[str, Any] = {
        "id": webhook.request,
        "status": webhook.ending,
        "model": webhook.model,
        "created_at_ms": webhook.created_at_ms,
        "ended_at_ms": webhook.ended_at_ms,
        "links": {"self": f"/v1/requests/{webhook.request}", "result": f"/v1/requests/{webhook.request}/result"},
    }
    return msgspec.json.encode(
        {
            "id": event_id(webhook.request),
            "object": "event",
            "created_at": webhook.ended_at_ms // 1000,
            "type": f"request.{webhook.ending}",
            "data": data,
        }
    )


def webhook_from(request: str, fields: Mapping[bytes, bytes], key: str) -> Webhook:
    """A stored one, read back. Raises PenstockError("bad_record")."""
    try:
        return Webhook(
            request=request,
            url=fields[b"url"].decode(),
            state=WebhookState(fields[b"state"].decode()),
            ending=RequestState(fields[b"ending"].decode()),
            model=fields[b"model"].decode(),
            created_at_ms=int(fields[b"created"]),
            ended_at_ms=int(fields[b"ended"]),
            tried=int(fields[b"tried"]),
            tries=tuple(msgspec.json.decode(line, type=Try) for line in fields[b"tries"].splitlines()),
        )
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise PenstockError(
            "bad_record",
            f"{key} cannot be read: {error!r}.",
            hint="Another program may have written this key; delete it, or point Penstock at a Redis of its own.",
        ) from error


def _bad_url(why: str, hint: str) -> PenstockError:
    return PenstockError("invalid_request", f"webhook: the URL is {why}.", hint=hint, param="webhook")
