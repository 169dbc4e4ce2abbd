"""The child process an engine runs in: `python -m worker.engines.host FD`, started by process.py and by nobody else.

Its own standard output goes where its standard error goes. It dies with its worker, whatever kills that.
Never here: Redis, leases, what an engine does.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable
from typing import Any

from dispatch.processes import die_with_parent
from dispatch.settings import WorkerSettings
from worker.engines.base import Engine, EngineDead, EngineLoad
from worker.engines.frames import (
    Canary,
    Cancel,
    Close,
    Counted,
    Dying,
    Ended,
    Failed,
    Generate,
    Load,
    Piece,
    Probe,
    Progress,
    Started,
    Steps,
    Tokens,
    ToParent,
    packed,
    read_to_child,
)
from worker.engines.registry import load_engine

TICK_S = 0.2
EXIT_DEAD = 70
_FLUSH_S = 5.0
_MOST_AT_ONCE = 256


class _Host:
    """One engine and the calls that are open in it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._said: list[bytes] = []
        self._engine: Engine | None = None
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._helpers: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self) -> int:
        """Serve until told to close, until the worker is gone or the engine is dead; the exit status."""
        self._help("listening", self._listen())
        self._help("ticking", self._tick())
        status = await self._over
        for task in (*self._calls.values(), *self._helpers):
            task.cancel()
        self._write()  # its last words
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await self._writer.drain()
        if status == 0 and self._engine is not None:
            await self._engine.close()
        return status

    def _help(self, name: str, work: Any) -> None:
        task = asyncio.create_task(work, name=name)
        self._helpers.add(task)
        task.add_done_callback(self._helped)

    def _helped(self, task: asyncio.Task[None]) -> None:
        """Deaf or mute it would be held for sound for ever: the worker must learn."""
        self._helpers.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # The type alone: its message could quote what a request said.
        died = isinstance(error, EngineDead)
        self._send(Dying(str(error) if died else f"{task.get_name()} to its worker failed with {type(error).__name__}"))
        self._finish(EXIT_DEAD)

    def _send(self, frame: ToParent) -> None:
        """All that is said in one turn of the loop goes in one write: a step of a batch wakes the worker once.

        But not without end: an engine that never pauses is held back by `drain`, which sees only what was written.
        """
        if not self._said:
            asyncio.get_running_loop().call_soon(self._write)
        self._said.append(packed(frame))
        if len(self._said) >= _MOST_AT_ONCE:
            self._write()

    def _write(self) -> None:
        said, self._said = self._said, []
        if said:
            self._writer.write(b"".join(said))

    def _finish(self, status: int) -> None:
        if not self._over.done():
            self._over.set_result(status)

    async def _listen(self) -> None:
        while (frame := await read_to_child(self._reader)) is not None:
            match frame:
                case Load():
                    self._call(0, self._load(frame))
                case Generate():
                    self._call(frame.call, self._generate(frame))
                case Probe():
                    self._call(frame.call, self._probe(frame))
                case Canary():
                    self._call(frame.call, self._canary(frame))
                case Cancel():
                    if (task := self._calls.get(frame.call)) is not None:
                        task.cancel()
                case Close():
                    break
        self._finish(0)

    async def _tick(self) -> None:
        progress, steps, load = "", -1, EngineLoad()
        while True:
            if self._engine is not None:
                if self._engine.progress != progress:
                    progress = self._engine.progress
                    self._send(Progress(progress))
                if self._engine.steps() != steps:
                    steps = self._engine.steps()
                    self._send(Steps(steps))
                if (now := self._engine.load()) != load:
                    load = now
                    self._send(Counted(load))
            await asyncio.sleep(TICK_S)

    def _call(self, call: int, work: Awaitable[None]) -> None:
        task = asyncio.create_task(self._guard(call, work))
        self._calls[call] = task
        task.add_done_callback(lambda _: self._calls.pop(call, None))

    async def _guard(self, call: int, work: Awaitable[None]) -> None:
        try:
            await work
        except EngineDead as dead:
            self._send(Dying(str(dead)))
            self._finish(EXIT_DEAD)
        except Exception as error:
            self._send(Failed.of(call, error))

    async def _load(self, frame: Load) -> None:
        self._engine = load_engine(frame.engine, WorkerSettings.model_validate(frame.settings))
        info = await self._engine.start()
        self._send(Started(info))

    async def _generate(self, frame: Generate) -> None:
        async with contextlib.aclosing(self._ready().generate(frame.request, frame.done)) as answer:  # type: ignore[type-var]
            async for chunk in answer:
                self._send(Piece(frame.call, chunk))
                await self._writer.drain()
        self._send(Ended(frame.call))

    async def _probe(self, frame: Probe) -> None:
        await self._ready().probe()
        self._send(Ended(frame.call))

    async def _canary(self, frame: Canary) -> None:
        self._send(Tokens(frame.call, await self._ready().canary()))

    def _ready(self) -> Engine:
        if self._engine is None:
            raise EngineDead("it was asked before it was loaded")
        return self._engine


async def _serve(descriptor: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=descriptor))
    status = await _Host(reader, writer).run()
    sys.stderr.flush()
    # At once: a thread that is still loading, or a library's own, would hold the process and its memory.
    os._exit(status)


def main() -> None:
    """Serve one engine over the socket whose descriptor is the first argument."""
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the worker decides when to stop
    os.dup2(2, 1)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    asyncio.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
