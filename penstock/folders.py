"""Where `up` keeps things: the data folder with its one owner, and the logs in it.

Never here: what is written into it (server.py, autoscaler/launchers/children.py).
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dispatch.settings import Settings
from penstock.failures import Failure

_LOCK_WAIT_S = 5.0
_PREFIX = "penstock-up-"
_STALE_S = 60.0


@contextmanager
def data_folder(settings: Settings, *, ephemeral: bool) -> Iterator[tuple[Path, int]]:
    """The folder, owned by this process until the end, and the lock's file descriptor for our server to inherit."""
    if ephemeral:
        _remove_left_behind(Path(tempfile.gettempdir()))
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    else:
        folder = (settings.data_dir or Path("~/.local/share/penstock")).expanduser().absolute()
    lock = _own(folder)
    try:
        yield folder, lock
        if ephemeral:  # after a failure the logs are still wanted; the next ephemeral run removes them
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def prepare_logs(folder: Path) -> Path:
    """The folder for logs; the last run's are kept as `.old`."""
    logs = folder / "logs"
    logs.mkdir(mode=0o700, exist_ok=True)
    for log in logs.glob("*.log"):
        log.replace(log.with_suffix(".log.old"))
    return logs


def _own(folder: Path) -> int:
    """Our server inherits the lock: so a folder whose owner was killed is not taken while that server still dies."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        to_do = "Name a folder of yours with --data DIR, or run with --ephemeral"
        raise Failure(f"The data folder {folder} cannot be used", error.strerror or str(error), to_do) from error
    deadline = time.monotonic() + _LOCK_WAIT_S
    while not _try_lock(lock):
        owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        if _is_alive(owner) or time.monotonic() > deadline:
            os.close(lock)
            why = f"another `penstock up` (process {owner or 'unknown'}) runs on it"
            to_do = "Stop that one, or give this one its own with --data DIR (or --ephemeral)"
            raise Failure(f"The data folder {folder} is in use", why, to_do)
        time.sleep(0.05)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _remove_left_behind(parent: Path) -> None:
    """Temporary folders of an `up` that was killed: nobody holds their lock."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid() or time.time() - folder.stat().st_mtime < _STALE_S:
                continue
            lock = os.open(folder / "lock", os.O_RDWR)
        except OSError:
            continue
        try:
            if _try_lock(lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
