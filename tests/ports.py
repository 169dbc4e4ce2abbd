"""Ports for servers that are started, killed and started again on the same one.

From below those that the kernel gives to outgoing connections: one of these may take a port between our look and the bind,
or while its server is down, and keep it. Never here: who listens.
"""

import random
import socket

_LOWEST, _HIGHEST = 15_000, 32_000
_given: set[int] = set()


def free_port() -> int:
    """A port of this machine on which nobody listens, and that was not given before."""
    for _ in range(1_000):
        port = random.randint(_LOWEST, _HIGHEST)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError(f"no free port from {_LOWEST} to {_HIGHEST}")
