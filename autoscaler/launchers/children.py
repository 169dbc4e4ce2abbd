"""Named processes of this machine that die with this one, each with a log.

Never here: when to start or end one (local.py, penstock/household.py).
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from autoscaler.launchers.base import Exit, Launched
from autoscaler.logs import tail
from dispatch.processes import with_parent


class LocalProcesses:
    """Named children. Their stderr and stdout go to a log file each; every end is told by `exits`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._exits: asyncio.Queue[Exit] = asyncio.Queue()

    async def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, pass_fds: Sequence[int] = ()
    ) -> Launched:
        """Start a child under a name that no living child has."""
        with self.log(name).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=with_parent(dict(environment)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
                # A terminal's Ctrl-C is for us: we end the children in order.
                start_new_session=True,
            )
        self._children[name] = process
        self._watchers[name] = asyncio.create_task(self._watch(name, process), name=f"watch {name}")
        return Launched(name, process.pid)

    async def stop(self, name: str, *, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL if it is still there after `timeout_s`; returns when it is gone."""
        process = self._children.get(name)
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(asyncio.shield(self._watchers[name]), timeout_s)
        except TimeoutError:
            self.kill(name)
            await self._watchers[name]

    def kill(self, name: str, signal_number: int = signal.SIGKILL) -> None:
        """A signal to a child, if it lives."""
        process = self._children.get(name)
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(signal_number)

    def alive(self, name: str) -> bool:
        """Whether that child lives."""
        return name in self._children

    async def gone(self, name: str) -> None:
        """Return when that child has ended."""
        if name in self._watchers:
            await asyncio.shield(self._watchers[name])

    async def exits(self) -> AsyncIterator[Exit]:
        """Every end of a child, as it happens."""
        while True:
            yield await self._exits.get()

    def log(self, name: str) -> Path:
        """Where a child's output goes."""
        return self._logs / f"{name}.log"

    def tail(self, name: str, lines: int = 6) -> list[str]:
        """The last lines a child wrote."""
        return list(tail(self.log(name), lines))

    async def _watch(self, name: str, process: asyncio.subprocess.Process) -> None:
        started = time.monotonic()
        code = await process.wait()
        del self._children[name]
        self._exits.put_nowait(Exit(name, process.pid, code, time.monotonic() - started))
