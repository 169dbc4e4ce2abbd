"""Children that die with their parent, whatever kills it. Never here: what the children do.

On Linux the kernel does it (PR_SET_PDEATHSIG); elsewhere a thread of the child watches its parent's pid. A thread does not
outlive execve: a server started by `penstock.exec_with_parent` dies with its parent on Linux only.
"""

import ctypes
import os
import signal
import sys
import threading
import time

PARENT_VARIABLE = "PENSTOCK_PARENT_PID"
_PR_SET_PDEATHSIG = 1
_LOOK_EVERY_S = 0.5


def with_parent(environment: dict[str, str]) -> dict[str, str]:
    """An environment for a child that will call `die_with_parent()`."""
    return {**environment, PARENT_VARIABLE: str(os.getpid())}


def die_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Called first thing in a child: when the parent dies, this process gets `signal_number`.

    Does nothing when the process was not started by `with_parent` (a person's own shell is no such parent).
    """
    expected = os.environ.pop(PARENT_VARIABLE, "")
    if not expected:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
    else:
        watching = threading.Thread(target=_watch_parent, args=(int(expected), signal_number), name="watch parent", daemon=True)
        watching.start()
    # The parent may have died before the line above took effect: then we were given to another one.
    if os.getppid() != int(expected):
        os.kill(os.getpid(), signal_number)


def _watch_parent(parent: int, signal_number: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), signal_number)
