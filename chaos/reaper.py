"""`python -m chaos.reaper MARK`: waits until the harness has ended, however, and kills what agents started and nobody ended.

The harness holds the other end of this process's stdin. Never here: anything while the harness lives.
"""

import os
import signal
import sys
from contextlib import suppress

from chaos.pool import marked_by


def main() -> int:
    """Wait, kill."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the harness: its end is what counts
    sys.stdin.buffer.read()
    for _ in range(2):  # one that was just being started shows at the second look
        for marked in marked_by(sys.argv[1]):
            with suppress(ProcessLookupError):
                os.kill(marked.process.pid, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
