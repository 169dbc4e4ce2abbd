"""What the entries of output logs, feeds and inboxes say: from stored fields to values. Pure.

Never here: reading them (queue.py, looking.py), writing them (scripts/).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dispatch.errors import PenstockError
from dispatch.messages import EntryKind, Grant, LogEntry, Stop


def log_entries(request: str, raw: Iterable[Any]) -> list[LogEntry]:
    """All of an XRANGE reply of an output log, flat (from Lua) or parsed (from the client).

    An end may have the chunk before it in its own entry: these are two. Raises PenstockError("bad_record").
    """
    entries: list[LogEntry] = []
    for raw_id, raw_fields in raw:
        fields = raw_fields if isinstance(raw_fields, dict) else dict(zip(raw_fields[::2], raw_fields[1::2], strict=True))
        try:
            seq, attempt = map(int, raw_id.split(b"-"))
            end = LogEntry(request, seq, attempt, EntryKind(fields[b"k"].decode()), fields[b"d"], fields[b"h"].decode())
            if b"c" in fields:
                entries.append(_last_chunk(end, fields[b"c"], fields[b"g"].decode()))
            entries.append(end)
        except (KeyError, ValueError) as error:
            raise PenstockError(
                "bad_record", f"Entry {raw_id.decode()} of the output of {request} cannot be read: {error!r}."
            ) from error
    return entries


def feed_entries(fields: Mapping[bytes, bytes]) -> Sequence[LogEntry | None]:
    """What one entry of a feed says; None: the feed was cut."""
    if b"m" not in fields:
        return _older_feed_entry(fields)
    request, seq, attempt, kind, chain, *last_chain = fields[b"m"].decode().split(" ")
    told = LogEntry(request, int(seq), int(attempt), EntryKind(kind), fields[b"d"], chain)
    return (_last_chunk(told, fields[b"c"], last_chain[0]), told) if last_chain else (told,)


def _last_chunk(end: LogEntry, data: bytes, chain: str) -> LogEntry:
    return LogEntry(end.request, end.seq - 1, end.attempt, EntryKind.CHUNK, data, chain)


def _older_feed_entry(fields: Mapping[bytes, bytes]) -> Sequence[LogEntry | None]:
    """As workers of the release before write it."""
    if b"r" not in fields:
        return (None,)
    kind = EntryKind(fields[b"k"].decode())
    return (LogEntry(fields[b"r"].decode(), int(fields[b"s"]), int(fields[b"a"]), kind, fields[b"d"], fields[b"h"].decode()),)


def inbox_word(worker: str, inbox_id: str, fields: Mapping[bytes, bytes]) -> Grant | Stop | None:
    """A grant or a stop; None for what nobody of ours wrote (it is passed over, a worker does not die of it)."""
    try:
        request, attempt = fields[b"id"].decode(), int(fields[b"attempt"])
        if fields[b"kind"] == b"stop":
            return Stop(request, attempt, fields[b"reason"].decode())
        return Grant(request, worker, attempt, fields[b"nonce"].decode(), int(fields[b"cost"]), inbox_id)
    except (KeyError, ValueError):
        return None
