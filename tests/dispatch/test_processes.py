"""A child dies with its parent: by the kernel on Linux, by a thread of its own elsewhere."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

CHILD = """
import signal, sys
sys.platform = {platform!r}
from dispatch.processes import die_with_parent
die_with_parent(signal.SIGKILL)
print("up", flush=True)
signal.pause()
"""
PARENT = """
import os, subprocess, sys
from dispatch.processes import with_parent
child = subprocess.Popen([sys.executable, "-c", {child!r}], env=with_parent(dict(os.environ)), stdout=subprocess.PIPE)
assert child.stdout.readline() == b"up\\n"
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_child_dies_with_a_parent_that_was_killed(platform: str) -> None:
    program = PARENT.format(child=textwrap.dedent(CHILD.format(platform=platform)))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.returncode == -signal.SIGKILL, done.stderr
    child = int(done.stdout)
    deadline = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Not a zombie, either: nobody may be there to reap it."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
