"""A connection's writes of one turn of the event loop as one: the head of an answer and its body, frames that come together.

The server writes the head alone, and the loop sends each write at once: two system calls for an answer, and its client is
woken twice. Never here: what is written.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

_AT_ONCE_BYTES = 64 * 1024
"""So much goes out without waiting for the turn's end: who writes on and on must feel that its client does not read."""


class JoiningTransport:
    """A transport. All but writing and its end is the inner one's affair."""

    def __init__(self, inner: asyncio.Transport) -> None:
        self._inner = inner
        self._call_soon = asyncio.get_running_loop().call_soon
        self._waiting: list[bytes] = []
        self._bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, data: bytes) -> None:
        """Send it, with all that is written in this turn."""
        if not self._waiting:
            self._call_soon(self._send)
        self._waiting.append(data)
        self._bytes += len(data)
        if self._bytes >= _AT_ONCE_BYTES:
            self._send()

    def writelines(self, list_of_data: Iterable[bytes]) -> None:
        """Send them in order, with all that is written in this turn."""
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """Send what waits, and say that nothing follows."""
        self._send()
        self._inner.write_eof()

    def close(self) -> None:
        """Send what waits, and close."""
        self._send()
        self._inner.close()

    def abort(self) -> None:
        """Close and send nothing more."""
        self._waiting.clear()
        self._bytes = 0
        self._inner.abort()

    def _send(self) -> None:
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            self._inner.write(data)
