"""The launcher that asks a program of yours (clouds, Slurm): one JSON document on its stdin, one on its stdout.

docs/launchers.md has the contract and a complete script. Never here: what the program does, and its secrets.
"""

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from autoscaler.launchers.fence import Fence
from dispatch.configuration import FOREIGN_NAMES, PREFIX
from dispatch.errors import PenstockError
from dispatch.messages import READABLE_VERSIONS, SCHEMA_VERSION
from dispatch.scaling import LaunchReport, Orders
from dispatch.settings import Settings

_TIMEOUT_S = 30.0
_MAX_ANSWER_BYTES = 4 * 1024 * 1024
_MAX_COMPLAINT_BYTES = 64 * 1024
_EOF_S = 0.5
"""How long an output may stay open after its program ended: somebody it started holds it."""
_READ_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class _Reports:
    reports: tuple[LaunchReport, ...]
    v: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class _Unplaceable:
    unplaceable: str
    v: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class _Applied:
    v: int = SCHEMA_VERSION


class ExecLauncher:
    """See the module's docstring. One call at a time; each is bounded in time and size."""

    names_itself = False

    def __init__(self, settings: Settings, *, timeout_s: float = _TIMEOUT_S) -> None:
        script = settings.autoscaler.script
        if not script or not shlex.split(script):
            raise PenstockError(
                "bad_setting",
                "The exec launcher has no program to call.",
                hint="Set autoscaler.script to it, such as /etc/penstock/launch.py; docs/launchers.md has an example.",
                param="autoscaler.script",
            )
        self._command = shlex.split(script)
        self._name = self._command[0]
        self._group = settings.autoscaler.group
        self._kill_after_s = settings.worker.drain_timeout_s + settings.autoscaler.kill_after_s
        self._timeout_s = timeout_s
        self._fence = Fence()
        self._one_at_a_time = asyncio.Lock()

    async def apply(self, orders: Orders) -> None:
        self._fence.check(orders)
        await self._ask(_Applied, "apply", orders=orders, kill_after_s=self._kill_after_s)

    async def reports(self) -> Mapping[str, LaunchReport]:
        return {report.id: report for report in (await self._ask(_Reports, "reports")).reports}

    async def unplaceable(self, pool: str, need_bytes: int) -> str:
        return str((await self._ask(_Unplaceable, "unplaceable", pool=pool, need_bytes=need_bytes)).unplaceable)

    async def close(self) -> None:
        """Nothing is open between two calls."""

    async def _ask(self, kind: type[Any], action: str, **more: Any) -> Any:
        question = msgspec.json.encode({"v": SCHEMA_VERSION, "action": action, "group": self._group, **more})
        async with self._one_at_a_time:
            answer = await self._call(action, question)
        try:
            # An empty answer to `apply` is what a short shell script gives.
            value = msgspec.json.decode(answer.strip() or b"{}", type=kind)
        except msgspec.DecodeError as error:
            raise self._fault(action, f"answered what is no {action} document: {error}", answer) from error
        if value.v not in READABLE_VERSIONS:
            raise self._fault(action, f"answered with version {value.v}; this Penstock reads {sorted(READABLE_VERSIONS)}")
        return value

    async def _call(self, action: str, question: bytes) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise self._fault(action, f"cannot be started: {error.strerror}") from error
        assert process.stdin and process.stdout and process.stderr
        answer, complaint = bytearray(), bytearray()
        reading = [
            asyncio.create_task(_read(process.stdout, answer, _MAX_ANSWER_BYTES + 1)),
            asyncio.create_task(_read(process.stderr, complaint, _MAX_COMPLAINT_BYTES, last=True)),
        ]
        try:
            async with asyncio.timeout(self._timeout_s):
                # A script that does not read its input has closed it: its answer says what it is worth.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    process.stdin.write(question)
                    await process.stdin.drain()
                process.stdin.close()
                ended = asyncio.create_task(process.wait())
                await asyncio.wait([ended, reading[0]], return_when=asyncio.FIRST_COMPLETED)
                if len(answer) > _MAX_ANSWER_BYTES:
                    raise self._fault(action, f"answered more than {_MAX_ANSWER_BYTES} bytes", complaint=complaint)
                code = await ended
                _, open_still = await asyncio.wait(reading, timeout=_EOF_S)
            if len(answer) > _MAX_ANSWER_BYTES:
                raise self._fault(action, f"answered more than {_MAX_ANSWER_BYTES} bytes", complaint=complaint)
        except TimeoutError:
            raise self._fault(action, f"did not end within {self._timeout_s:g} s", complaint=complaint) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            for task in reading:
                task.cancel()
            # What it started may hold the pipes: without this they would stay open here for as long.
            process._transport.close()  # type: ignore[attr-defined]
        if code != 0:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            raise self._fault(action, how, complaint=complaint)
        if reading[0] in open_still and not answer.strip():
            raise self._fault(action, "ended without an answer, and something it started holds its output open")
        return bytes(answer)

    def _fault(self, action: str, what: str, answer: bytes = b"", *, complaint: bytes | bytearray = b"") -> PenstockError:
        lines = [line for line in complaint.decode("utf-8", "replace").splitlines() if line.strip()]
        said = f" It said: {lines[-1].strip()[:300]}" if lines else ""
        began = f" It began with {answer[:80]!r}." if answer else ""
        return PenstockError(
            "launcher_failed",
            f"The launcher script {self._name}, asked for {action!r}, {what}.{began}{said}",
            hint="It is called again at the next tick; docs/launchers.md says what it must answer.",
        )


async def _read(stream: asyncio.StreamReader, into: bytearray, most: int, *, last: bool = False) -> None:
    """Until its end; at most so many bytes, the first ones or the `last` ones."""
    while piece := await stream.read(_READ_BYTES):
        into += piece
        if len(into) > most:
            if not last:
                return
            del into[:-most]


def _environment() -> dict[str, str]:
    """Ours without Penstock's settings: secrets stand among them, and the script has its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX) and name not in FOREIGN_NAMES}
