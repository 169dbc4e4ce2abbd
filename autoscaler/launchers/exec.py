"""The launcher that asks a program of yours (clouds, Slurm): one JSON document on its stdin, one on its stdout.

docs/launchers.md has the contract and a complete script. Never here: what the program does, and its secrets.
"""

import asyncio
import contextlib
import os
import shlex
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

import msgspec

from autoscaler.launchers.fence import Fence
from dispatch.configuration import FOREIGN_NAMES, PREFIX
from dispatch.errors import PenstockError
from dispatch.messages import READABLE_VERSIONS, SCHEMA_VERSION
from dispatch.scaling import LaunchReport, Orders
from dispatch.settings import Settings

_TIMEOUT_S = 30.0
_MAX_ANSWER_BYTES = 4 * 1024 * 1024
_TAIL_BYTES = 4096
_LOOK_EVERY_S = 0.1


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
        # Files, not pipes: what the program leaves running may hold its output open for as long as it likes.
        with TemporaryFile() as asked, TemporaryFile() as answer, TemporaryFile() as complaint:
            asked.write(question)
            asked.seek(0)
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=asked, stdout=answer, stderr=complaint, env=_environment(), start_new_session=True
                )
            except OSError as error:
                raise self._fault(action, f"cannot be started: {error.strerror}") from error
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._ended(action, process, answer, complaint)
            except TimeoutError:
                raise self._fault(action, f"did not end within {self._timeout_s:g} s", said=_tail(complaint)) from None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
            if code := process.returncode:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                raise self._fault(action, how, said=_tail(complaint))
            answer.seek(0)
            return answer.read(_MAX_ANSWER_BYTES)

    async def _ended(self, action: str, process: Process, answer: IO[bytes], complaint: IO[bytes]) -> None:
        ended = asyncio.ensure_future(process.wait())
        try:
            while not (await asyncio.wait([ended], timeout=_LOOK_EVERY_S))[0]:
                self._check_size(action, answer, complaint)
            self._check_size(action, answer, complaint)
        finally:
            ended.cancel()

    def _check_size(self, action: str, answer: IO[bytes], complaint: IO[bytes]) -> None:
        if max(os.fstat(file.fileno()).st_size for file in (answer, complaint)) > _MAX_ANSWER_BYTES:
            raise self._fault(action, f"wrote more than {_MAX_ANSWER_BYTES} bytes", said=_tail(complaint))

    def _fault(self, action: str, what: str, answer: bytes = b"", *, said: str = "") -> PenstockError:
        began = f" It began with {answer[:80]!r}." if answer else ""
        heard = f" It said: {said}" if said else ""
        return PenstockError(
            "launcher_failed",
            f"The launcher script {self._name}, asked for {action!r}, {what}.{began}{heard}",
            hint="It is called again at the next tick; docs/launchers.md says what it must answer.",
        )


def _tail(complaint: IO[bytes]) -> str:
    """The last line."""
    size = os.fstat(complaint.fileno()).st_size
    complaint.seek(max(0, size - _TAIL_BYTES))
    lines = [line.strip() for line in complaint.read(_TAIL_BYTES).decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _environment() -> dict[str, str]:
    """Ours without Penstock's settings: secrets stand among them, and the script has its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX) and name not in FOREIGN_NAMES}
