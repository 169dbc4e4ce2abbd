"""Two workers on one device: who may start now, and what each was promised and has not taken yet.

A lock file a device is held while an engine loads and sizes its memory, so that two do not both see the same free memory. A
record a worker says what it may come to hold; what it holds already is seen by the device. Files of this machine, in a
folder of this user: they die with their processes (a lock at once, a record is passed over). Without such a folder (a login's
goes when its user logs out) workers start and beat as if they were alone. Never here: what is started.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

_LOOK_S = 0.1
_PATIENCE_S = 300.0
_SIZING_PATIENCE_S = 5.0
_log = logging.getLogger("penstock.worker")
_NAME = re.compile(r"[^A-Za-z0-9.-]")


class Record(msgspec.Struct, frozen=True):
    """What one worker's engine may come to hold of a device: `bytes` in all, by the process `pid`."""

    pid: int
    started: str
    bytes: int


def folder() -> Path:
    """Where the files lie: `PENSTOCK_RUNTIME_DIR`, the user's runtime folder, or the one for temporary files."""
    chosen = os.environ.get("PENSTOCK_RUNTIME_DIR")
    base = Path(chosen or os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    path = base / f"penstock-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.lstat().st_uid != os.getuid():
        raise PermissionError(f"{path} is another user's")
    return path


@contextlib.asynccontextmanager
async def start_lock(
    device: str, on_wait: Callable[[], None] = lambda: None, *, patience_s: float = _PATIENCE_S
) -> AsyncIterator[None]:
    """Held while an engine starts on that device. The kernel lets go of it when its holder dies.

    A holder that hangs is not waited for for ever: then the start goes on without it.
    """
    give_up_at = time.monotonic() + patience_s
    with _lock_file(device) as file:
        while file is not None and not _taken(file):
            if time.monotonic() >= give_up_at:
                _log.warning("start beside another worker that has been starting for too long", extra={"device": device})
                break
            on_wait()
            await asyncio.sleep(_LOOK_S)
        yield


@contextlib.contextmanager
def sizing_lock(device: str) -> Iterator[None]:
    """The same for a moment: between the look at what is free and the promise. Blocks, a few seconds at most."""
    give_up_at = time.monotonic() + _SIZING_PATIENCE_S
    with _lock_file(device) as file:
        while file is not None and not _taken(file) and time.monotonic() < give_up_at:
            time.sleep(_LOOK_S)
        yield


def promise(device: str, pid: int, total_bytes: int) -> None:
    """Note that the process may come to hold so much of the device, what it holds already included."""
    try:
        path = _record(device, pid)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(Record(pid, _started(pid), total_bytes)))
        fresh.replace(path)
    except OSError as error:
        _complain(error)


def withdraw(device: str, pid: int) -> None:
    """The process holds nothing any more."""
    with contextlib.suppress(OSError):
        _record(device, pid).unlink()


def promised_elsewhere_bytes(device: str, own: Iterable[int], held_bytes: Callable[[int], int] | None = None) -> int:
    """What processes other than `own` were promised of the device and do not hold yet. Records of the dead count for nothing."""
    ours, promised = frozenset(own), 0
    try:
        records = list(folder().glob(f"{_safe(device)}.*.json"))
    except OSError:
        return 0  # asked with every beat: a beat must not end with the folder
    for path in records:
        try:
            record = msgspec.json.decode(path.read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            continue
        if record.started != _started(record.pid):
            with contextlib.suppress(OSError):
                path.unlink()
        elif record.pid not in ours:
            promised += max(0, record.bytes - (held_bytes or rss_bytes)(record.pid))
    return promised


def rss_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 (read every beat)
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


@contextlib.contextmanager
def _lock_file(device: str) -> Iterator[IO[Any] | None]:
    """The open file to lock; None where there can be none: then nobody is waited for."""
    with contextlib.ExitStack() as opened:
        file = None
        try:
            file = opened.enter_context((folder() / f"start-{_safe(device)}.lock").open("a"))
        except OSError as error:
            _complain(error)
        yield file


def _complain(error: OSError) -> None:
    to_do = "Set PENSTOCK_RUNTIME_DIR to a folder that this user can write to."
    _log.warning("see no other worker on this device", extra={"why": str(error), "to_do": to_do})


def _taken(file: IO[Any]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _record(device: str, pid: int) -> Path:
    return folder() / f"{_safe(device)}.{pid}.json"


def _safe(device: str) -> str:
    return _NAME.sub("_", device)


def _started(pid: int) -> str:
    """When a process began, so that its number used again is not taken for it; "" when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
