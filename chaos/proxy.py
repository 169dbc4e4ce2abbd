"""A TCP proxy between one role and Redis that can misbehave: cut, delay, swallow or drop replies, go silent.

One proxy a role, so that a partition hits that role alone. Never here: when to misbehave (faults.py).
"""

import asyncio
import contextlib
import random
from collections.abc import Mapping
from dataclasses import dataclass

_CHUNK = 65_536


@dataclass
class Misbehaviour:
    """What the proxy does to its role now."""

    delay_s: float = 0.0
    """Every piece of a request waits this long."""
    drop_reply: float = 0.0
    """The chance that a reply is dropped, together with its connection, after the command was executed."""
    mute: bool = False
    """Requests pass and are executed, no reply comes back."""
    silent: bool = False
    """Nothing passes in either direction; connections stay open."""
    refuse: bool = False
    """New connections are closed at once."""


class Proxy:
    """Listens on a port of its own and passes bytes on to the server.

    `renamed`: what is called otherwise in replies; each word as long as its new one. A word that two reads cut in half is missed.
    """

    def __init__(self, server_port: int, rng: random.Random, *, renamed: Mapping[bytes, bytes] | None = None) -> None:
        self.now = Misbehaviour()
        self.port = 0
        self.dropped = 0
        self._server_port = server_port
        self._rng = rng
        self._renamed = renamed or {}
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and cut everything."""
        if self._listener is not None:
            self._listener.close()
        self.now = Misbehaviour()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)

    def cut(self) -> int:
        """Close every connection now; returns how many there were."""
        cut = len(self._open) // 2
        for writer in list(self._open):
            writer.transport.abort()
        return cut

    def heal(self) -> None:
        """Behave. What hung is cut, as a network that comes back after a partition does."""
        hung = self.now.silent or self.now.mute
        self.now = Misbehaviour()
        if hung:
            self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.now.refuse:
            writer.transport.abort()
            return
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.transport.abort()
            return
        both = (writer, upstream_writer)
        self._open.update(both)
        try:
            ways = (
                asyncio.create_task(self._pass(reader, upstream_writer, replies=False)),
                asyncio.create_task(self._pass(upstream_reader, writer, replies=True)),
            )
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._open.difference_update(both)
            for each in both:
                with contextlib.suppress(RuntimeError):
                    each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                while self.now.silent:
                    await asyncio.sleep(0.05)
                if replies:
                    for theirs, ours in self._renamed.items():
                        data = data.replace(theirs, ours)
                    if self.now.mute:
                        continue
                    if self.now.drop_reply and self._rng.random() < self.now.drop_reply:
                        self.dropped += 1
                        return
                elif self.now.delay_s:
                    await asyncio.sleep(self.now.delay_s)
                writer.write(data)
                await writer.drain()
