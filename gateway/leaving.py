"""A client that leaves: told by its connection itself, so that no task has to wait for it beside each answer.

Never here: what follows (whoever asked to be told), streams' own watch (sse.py).
"""

from collections.abc import Callable

EXTENSION = "penstock.leaving"
"""Where the server (serve.py) puts a connection's Leaving into the scope of each exchange."""


class Leaving:
    """Of one connection."""

    __slots__ = ("_asked", "_gone")

    def __init__(self) -> None:
        self._asked: set[Callable[[], None]] = set()
        self._gone = False

    def ask(self, tell: Callable[[], None]) -> None:
        """Call `tell` once the client is gone; at once, if it is already. Take it back with `forget`."""
        self._asked.add(tell)
        if self._gone:
            tell()

    def forget(self, tell: Callable[[], None]) -> None:
        """It is of no matter any more."""
        self._asked.discard(tell)

    def happened(self) -> None:
        """The connection is lost."""
        self._gone = True
        for tell in tuple(self._asked):
            tell()
