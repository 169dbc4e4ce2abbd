"""`python -m penstock.exec_with_parent -- BINARY ARGS`: run a foreign binary that dies with the process that started it.

It cannot call `die_with_parent()` itself, so this does it and becomes the binary: PR_SET_PDEATHSIG outlives execve.
"""

import os
import signal
import subprocess
import sys
import time

from dispatch.processes import die_with_parent


def main() -> int:
    """Become the binary; where the kernel cannot tie it to its parent, stay and watch."""
    command = sys.argv[2:] if sys.argv[1:2] == ["--"] else sys.argv[1:]
    # A terminal's Ctrl-C goes to the whole group: the server must be the last to go, at its parent's word.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    die_with_parent(signal.SIGTERM)
    if sys.platform == "linux":
        os.execv(command[0], command)
    with subprocess.Popen(command) as child:
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        while child.poll() is None:
            if os.getppid() != parent:
                child.terminate()
            time.sleep(0.2)
        return child.returncode


if __name__ == "__main__":
    sys.exit(main())
