"""The log file of a process: its last lines, and a bound for it. Never here: who writes it."""

import os
from contextlib import suppress
from pathlib import Path

_TAIL_BYTES = 4096
_LINE_CHARACTERS = 500
_MOST_BYTES = 32 << 20
_KEPT_BYTES = 1 << 20


def tail(log: Path, lines: int = 6) -> tuple[str, ...]:
    """The last lines that say something; none where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(line[:_LINE_CHARACTERS] for line in text.splitlines() if line.strip())[-lines:]


def bound(log: Path, most_bytes: int = _MOST_BYTES, kept_bytes: int = _KEPT_BYTES) -> None:
    """Cut a log that has grown beyond `most_bytes` down to its last `kept_bytes`.

    Its writer goes on: it appends (O_APPEND), so its next line follows what was kept. One it writes during the cut may be lost.
    """
    with suppress(OSError):
        if log.stat().st_size <= most_bytes:
            return
        with log.open("r+b") as file:
            file.seek(-kept_bytes, os.SEEK_END)
            kept = file.read()
            file.truncate(0)
        with log.open("ab") as file:
            file.write(kept.partition(b"\n")[2])
