"""Children that die with their parent, whatever kills it. Never here: what the children do.

On Linux the kernel does it (PR_SET_PDEATHSIG); elsewhere, and as a second line, the child watches its parent's pid.
"""

import asyncio
import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "PENSTOCK_PARENT_PID"
_PR_SET_PDEATHSIG = 1


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
    # The parent may have died before the line above took effect: then we were given to another one.
    if os.getppid() != int(expected):
        os.kill(os.getpid(), signal_number)


async def until_parent_dies(poll_s: float = 0.5) -> None:
    """Return when the parent is gone; for systems without PR_SET_PDEATHSIG."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - the kernel has no event for it here
        await asyncio.sleep(poll_s)
