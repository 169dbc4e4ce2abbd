"""An engine in a child process: inference cannot block the worker's event loop, and a crash takes only the engine.

`ProcessEngine` is an Engine that passes everything on to another one in `worker.engines.host`, over a socket pair.
When the child is gone, everything open in it ends with EngineDead and the evidence: how it ended, in words of ours. What
it wrote may quote a prompt, and the evidence reaches every request beside that one: of it only known
diagnoses are told. Never here: starting another engine.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, BinaryIO

from dispatch.diagnosis import diagnosis
from dispatch.errors import PenstockError
from dispatch.messages import InferenceRequest, InputKind
from dispatch.pricing import cost_tokens, prompt_tokens
from dispatch.processes import with_parent
from dispatch.settings import WorkerSettings
from worker.engines.base import Chunk, Cost, EngineDead, EngineInfo, EngineLoad
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
    ToChild,
    Tokens,
    packed,
    read_to_parent,
    settings_document,
)
from worker.engines.oom_kills import OomWatch

_CLOSE_S = 10.0
_LAST_LINES, _LINE_CHARACTERS = 3, 200
_KEPT_LINES = 30
"""A CUDA error is followed by lines of advice."""
_LOOK_S = 2.0
_LAST_WORDS_S = 0.5
"""How long its words are read on after its end: what it started itself may hold its side of them open for ever."""
_log = logging.getLogger("penstock.engine")

_Answer = Piece | Ended | Tokens | Failed | None  # None: the child is gone
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that somebody sends; any other one is the answer to what the process itself did."""


class ProcessEngine:
    """See the module's docstring."""

    def __init__(self, name: str, settings: WorkerSettings) -> None:
        self.progress = "starting"
        self._name = name
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.StreamWriter | None = None  # of the half that is read
        self._calls: dict[int, asyncio.Queue[_Answer]] = {}
        self._started: asyncio.Future[EngineInfo] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._steps = 0
        self._load = EngineLoad()
        self._next_call = 0
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._own_words = ""
        self._stderr: asyncio.BaseTransport | None = None
        self._evidence = ""
        self._own_fault = True
        self._closing = False

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> EngineInfo:
        ours, theirs = socket.socketpair()
        stderr, lines, self._stderr = await _pipe()
        with theirs, stderr:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "worker.engines.host", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
                env=with_parent(dict(os.environ)),
            )  # fmt: skip
        # Two halves: what we write to a child that is gone breaks the one it is written to, and its last words are on the other.
        reader, self._listener = await asyncio.open_connection(sock=ours)
        _, self._writer = await asyncio.open_connection(sock=ours.dup())
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport of a socket has it
        self._started = asyncio.get_running_loop().create_future()
        self._watcher = asyncio.create_task(self._watch(reader, lines, self._process))
        self._send(Load(self._name, settings_document(self._settings)))
        try:
            info = await self._started
        except BaseException:
            await self.close()
            raise
        self.progress = ""
        return info

    def cost(self, request: InferenceRequest) -> Cost:
        if request.kind is InputKind.OPAQUE:
            return Cost(max(request.cost_tokens, cost_tokens(prompt_tokens(request), 1)))
        return Cost(cost_tokens(prompt_tokens(request), request.sampling.max_tokens))

    async def generate(self, request: InferenceRequest, done: Sequence[int]) -> AsyncIterator[Chunk]:
        call, answers = self._open()
        over = False
        try:
            self._send(Generate(call, request, tuple(done)))
            while True:
                answer = await answers.get()
                if isinstance(answer, Piece):
                    yield answer.chunk
                    continue
                over = True
                self._raise_if_failed(answer)
                return
        finally:
            del self._calls[call]
            if not over and not self._evidence:
                self._send(Cancel(call))

    async def probe(self) -> None:
        await self._ask(Probe)

    async def canary(self) -> tuple[int, ...]:
        answer = await self._ask(Canary)
        return answer.tokens if isinstance(answer, Tokens) else ()

    def steps(self) -> int:
        if self._evidence:
            raise self._dead()
        return self._steps

    def load(self) -> EngineLoad:
        return self._load

    def kill(self) -> None:
        self._closing = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def close(self) -> None:
        process, self._closing = self._process, True
        if process is None:
            return
        if process.returncode is None:
            self._send(Close())
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        if self._watcher is not None:
            await asyncio.gather(self._watcher, return_exceptions=True)
        for half in (self._writer, self._listener):
            if half is not None:
                half.close()
                with contextlib.suppress(ConnectionError):
                    await half.wait_closed()

    async def _ask(self, question: type[Probe | Canary]) -> _Answer:
        """A call with one answer."""
        call, answers = self._open()
        answer: _Answer = None
        try:
            self._send(question(call))
            answer = await answers.get()
            self._raise_if_failed(answer)
            return answer
        finally:
            del self._calls[call]
            if answer is None and not self._evidence:
                self._send(Cancel(call))

    def _open(self) -> tuple[int, asyncio.Queue[_Answer]]:
        if self._process is None or self._evidence:
            raise self._dead()
        self._next_call += 1
        answers: asyncio.Queue[_Answer] = asyncio.Queue()
        self._calls[self._next_call] = answers
        return self._next_call, answers

    def _send(self, frame: ToChild) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(packed(frame))

    def _dead(self) -> EngineDead:
        return EngineDead(self._evidence or "the engine's process was not started", own_fault=self._own_fault)

    def _raise_if_failed(self, answer: _Answer) -> None:
        if answer is None:
            raise self._dead()
        if isinstance(answer, Failed):
            raise answer.error()

    async def _watch(
        self, frames: asyncio.StreamReader, lines: asyncio.StreamReader, process: asyncio.subprocess.Process
    ) -> None:
        """From the child's first word to its last: pass on what it says, then find out how it went."""
        hearing = asyncio.create_task(self._read_frames(frames))
        reading = asyncio.create_task(self._read_lines(lines, process.pid))
        ending = asyncio.create_task(process.wait())
        oom_kills = await self._watch_memory(process.pid, {hearing, ending})
        if not ending.done() and not self._closing:
            # It closed its socket or talks nonsense: nothing of it can be used any more.
            await self._wait_or_kill(process)
        status = await ending
        await asyncio.wait({hearing, reading}, timeout=_LAST_WORDS_S)
        hearing.cancel()
        reading.cancel()
        if self._stderr is not None:
            self._stderr.close()
        out_of_memory = -status == signal.SIGKILL and oom_kills.rose_since_the_look_before()
        self._own_fault = status != 0 and (-status not in _FROM_OUTSIDE or out_of_memory)
        self._gone("was killed by the kernel: out of memory" if out_of_memory else _how_it_ended(status))

    async def _watch_memory(self, pid: int, until: set[asyncio.Task[Any]]) -> OomWatch:
        """Look at the kernel's counters now and then, until one of these is over: only what rose around a death tells of it."""
        watch = OomWatch(pid)
        while not (await asyncio.wait(until, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED))[0]:
            watch.look()
        return watch

    async def _wait_or_kill(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(1.0):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _read_frames(self, frames: asyncio.StreamReader) -> None:
        try:
            while (frame := await read_to_parent(frames)) is not None:
                self._heard(frame)
        except Exception as error:
            self._own_words = f"its words could not be read: {type(error).__name__}"

    async def _read_lines(self, lines: asyncio.StreamReader, pid: int) -> None:
        while True:
            try:
                line = await lines.readline()
            except ValueError:
                continue  # a line longer than the buffer; what follows it is read on
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._last_lines.append(text[:_LINE_CHARACTERS])
                _log.debug("heard from the engine's process", extra={"engine": self._name, "pid": pid, "line": text})

    def _heard(self, frame: object) -> None:
        match frame:
            case Piece() | Ended() | Tokens():
                if (answers := self._calls.get(frame.call)) is not None:
                    answers.put_nowait(frame)
            case Failed():
                if frame.call == 0:
                    self._end_start(frame.error())
                elif (answers := self._calls.get(frame.call)) is not None:
                    answers.put_nowait(frame)
            case Steps():
                self._steps = frame.steps
            case Counted():
                self._load = frame.load
            case Progress():
                self.progress = frame.text
            case Started():
                if self._started is not None and not self._started.done():
                    self._started.set_result(frame.info)
            case Dying():
                self._own_words = frame.evidence[:_LINE_CHARACTERS]

    def _gone(self, how: str) -> None:
        said = [self._own_words, diagnosis(self._last_lines)] if not self._closing else []
        self._evidence = ": ".join([f"the engine's process {how}", *filter(None, said)])
        if not self._closing:
            _log.error("lost the engine's process", extra={"engine": self._name, "evidence": self._evidence})
        self._end_start(
            PenstockError(
                "engine_crashed",
                f"The engine could not start: {self._evidence}.",
                hint=self._hint(),
            )
        )
        for answers in self._calls.values():
            answers.put_nowait(None)

    def _hint(self) -> str:
        """Of a start that failed: a hint reaches the worker's own stderr alone, and nothing was asked of this one yet."""
        said = " | ".join(list(self._last_lines)[-_LAST_LINES:])
        killed = "If it was killed, the machine was probably out of memory."
        return f"{killed} It wrote last: {said}" if said else killed

    def _end_start(self, error: Exception) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_exception(error)


async def _pipe() -> tuple[BinaryIO, asyncio.StreamReader, asyncio.BaseTransport]:
    """For a child's stderr. Of a pipe that asyncio makes itself, `Process.wait` awaits the end too, whoever holds it open."""
    read_end, write_end = os.pipe()
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(read_end, "rb", 0)
    )
    return os.fdopen(write_end, "wb", 0), lines, transport


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
