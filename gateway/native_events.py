"""The native API's events, and the ids by which a client resumes them.

Never here: HTTP (sse.py), where entries come from (reading.py).
"""

import re
from typing import Any

import msgspec

from dispatch.errors import PenstockError
from dispatch.messages import LogEntry, first_chain, older_first_chain
from gateway.problems import error_member
from gateway.sse import one_line

_EVENT_ID = re.compile(r"(0|[1-9][0-9]{0,15})-([0-9a-f]{16})")
_RETRY_HINT_MS = 2000


class NativeFrames:
    """The native API's events: status, chunk, note, rewind, end; ids to resume by."""

    def __init__(self, document: dict[str, Any], opening_id: str) -> None:
        self._document = document
        self._opening_id = opening_id

    def opening(self) -> bytes:
        """A comment, how long to wait before a reconnect, and what the request is."""
        data = msgspec.json.encode(self._document)
        return b": penstock\nretry: %d\n\nid: %s\nevent: status\ndata: %s\n\n" % (_RETRY_HINT_MS, self._opening_id.encode(), data)

    def entry(self, entry: LogEntry) -> bytes:
        """A chunk, a note or the end, its data as stored."""
        event_id = b"%d-%s" % (entry.seq, entry.chain.encode())
        return b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id, entry.kind.value.encode(), one_line(entry.data))

    def rewind(self) -> bytes:
        """What came before is void; all of it follows again."""
        return b"event: rewind\ndata: {}\n\n"

    def failure(self, error: PenstockError) -> bytes:
        """The stream cannot go on here."""
        return b"event: error\ndata: %s\n\n" % msgspec.json.encode({"error": error_member(error)})


def resume_from(event_id: str | None, request_id: str) -> tuple[int, str]:
    """The seq and chain after which to go on. Never a silent replay: what is not an id of this request is refused."""
    if not event_id:
        return 0, ""
    match = _EVENT_ID.fullmatch(event_id)
    if match is None or (
        match.group(1) == "0" and match.group(2) not in (first_chain(request_id), older_first_chain(request_id))
    ):
        raise PenstockError(
            "invalid_event_id",
            f"{event_id[:60]!r} is no event id of this request.",
            hint="Send the last `id:` you received, or none to read from the start.",
            param="after",
        )
    seq = int(match.group(1))
    return seq, match.group(2) if seq else ""
