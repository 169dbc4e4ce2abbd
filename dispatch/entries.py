"""What the entries of output logs, feeds and inboxes say: from stored fields to values. Pure.

Never here: reading them (queue.py, looking.py), writing them (scripts/).
"""

from collections.abc import Iterable, Mapping, Sequence

from dispatch.errors import PenstockError
from dispatch.messages import EntryKind, Grant, LogEntry, Stop


def log_entries(request: str, raw: Sequence[bytes], *, first_seq: int = 1) -> list[LogEntry]:
    """Elements of an output log, of which the first has `first_seq`. Raises PenstockError("bad_record")."""
    entries: list[LogEntry] = []
    for seq, element in enumerate(raw, first_seq):
        try:
            attempt, kind, chain, data = element.split(b" ", 3)
            entries.append(LogEntry(request, seq, int(attempt), EntryKind(kind.decode()), data, chain.decode()))
        except ValueError as error:
            raise _unreadable(request, seq, error) from error
    return entries


def older_log_entries(request: str, raw: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> list[LogEntry]:
    """The same of a log of version 1, which was a stream. Raises PenstockError("bad_record")."""
    entries: list[LogEntry] = []
    for raw_id, fields in raw:
        try:
            seq, attempt = map(int, raw_id.split(b"-"))
            entries.append(LogEntry(request, seq, attempt, EntryKind(fields[b"k"].decode()), fields[b"d"], fields[b"h"].decode()))
        except (KeyError, ValueError) as error:
            raise _unreadable(request, raw_id.decode(), error) from error
    return entries


def _unreadable(request: str, entry: int | str, why: Exception) -> PenstockError:
    return PenstockError("bad_record", f"Entry {entry} of the output of {request} cannot be read: {why!r}.")


def feed_entries(fields: Mapping[bytes, bytes]) -> Sequence[LogEntry | None]:
    """What one entry of a feed says, an end's with the chunk before it; None: the feed was cut."""
    if b"m" not in fields:  # or it is of version 1: to attach anew is right, too
        return (None,)
    request, seq, attempt, kind, chain, *last_chain = fields[b"m"].decode().split(" ")
    told = LogEntry(request, int(seq), int(attempt), EntryKind(kind), fields[b"d"], chain)
    if not last_chain:
        return (told,)
    return LogEntry(request, told.seq - 1, told.attempt, EntryKind.CHUNK, fields[b"c"], last_chain[0]), told


def inbox_word(worker: str, inbox_id: str, fields: Mapping[bytes, bytes]) -> Grant | Stop | None:
    """A grant or a stop; None for what nobody of ours wrote (it is passed over, a worker does not die of it)."""
    try:
        if b"grant" in fields:
            request, attempt, nonce, cost = fields[b"grant"].decode().split(" ")
            return Grant(request, worker, int(attempt), nonce, int(cost), inbox_id)
        request, attempt, reason = fields[b"stop"].decode().split(" ", 2)
        return Stop(request, int(attempt), reason)
    except (KeyError, ValueError):
        return None
