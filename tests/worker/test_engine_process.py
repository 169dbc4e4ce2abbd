"""An engine in a child process: it streams, cancels, fails and dies as an engine should, and takes nobody with it."""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dispatch.errors import PenstockError
from dispatch.messages import FinishReason, InferenceRequest, InputKind, Sampling
from dispatch.settings import WorkerSettings
from tests.worker.conftest import until
from worker.engines.base import EngineDead, EngineError, EngineInfo
from worker.engines.frames import _LENGTH, Dying, read_to_parent, settings_document
from worker.engines.host import EXIT_DEAD, _Host
from worker.engines.process import ProcessEngine
from worker.engines.sim import SimEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROOT = Path(__file__).parent.parent.parent


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started() -> AsyncIterator[tuple[ProcessEngine, EngineInfo, list[str]]]:
    """The real one: the demo model on transformers, in its process; with what `progress` said meanwhile."""
    engine, said = ProcessEngine("transformers", WorkerSettings(device="cpu")), []

    async def listen() -> None:
        while True:
            if said[-1:] != [engine.progress]:
                said.append(engine.progress)
            await asyncio.sleep(0.02)

    listener = asyncio.create_task(listen())
    info = await engine.start()
    listener.cancel()
    yield engine, info, said
    await engine.close()


@pytest.fixture
def engine(started: tuple[ProcessEngine, EngineInfo, list[str]]) -> ProcessEngine:
    return started[0]


def sim() -> ProcessEngine:
    """A slow engine that starts quickly: for deaths."""
    return ProcessEngine("sim", WorkerSettings(engine="sim", model="sim", sim_gpu="A10"))


def ask(text: str = "Hello!", max_tokens: int = 200, **sampling: object) -> InferenceRequest:
    return InferenceRequest(
        id="r",
        model="demo",
        kind=InputKind.CHAT,
        messages=({"role": "user", "content": text},),
        sampling=Sampling(max_tokens=max_tokens, **{"temperature": 0.0, **sampling}),
    )


def is_there(pid: int) -> bool:
    """Whether it still runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def test_its_canary_says_the_same_tokens_each_time_and_its_steps_are_bounded(
    started: tuple[ProcessEngine, EngineInfo, list[str]],
) -> None:
    engine, info, _ = started
    said = await engine.canary()
    assert len(said) == 8 and [await engine.canary() for _ in range(2)] == [said] * 2
    assert 0 < info.longest_step_s < 60


async def test_a_killed_engine_was_ended_from_outside_and_a_crashed_one_was_not() -> None:
    for number, own_fault in ((signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGSEGV, True), (signal.SIGABRT, True)):
        engine = sim()
        await engine.start()
        assert engine.pid is not None
        os.kill(engine.pid, number)
        with pytest.raises(EngineDead) as dead:
            while True:
                engine.steps()
                await asyncio.sleep(0.01)
        assert dead.value.own_fault is own_fault
        await engine.close()


async def test_it_loads_in_its_own_process_and_says_how_far_it_is(started: tuple[ProcessEngine, EngineInfo, list[str]]) -> None:
    engine, info, said = started
    assert engine.pid not in (None, os.getpid())
    assert info.card.name == "demo"
    assert info.tokenizer is not None
    assert "<|assistant|>" in info.tokenizer.chat_template
    assert "reading the weights" in said
    assert engine.progress == ""


async def test_answers_stream_through(engine: ProcessEngine) -> None:
    async def one() -> tuple[str, int, FinishReason | None]:
        chunks = [chunk async for chunk in engine.generate(ask("Tell me about bread."), ())]
        assert len(chunks) > 1
        assert sum(len(chunk.tokens) for chunk in chunks) == chunks[-1].completion_tokens
        return "".join(chunk.text for chunk in chunks), chunks[-1].completion_tokens, chunks[-1].finish_reason

    answers = await asyncio.gather(*(one() for _ in range(8)))
    assert len(set(answers)) == 1
    text, tokens, reason = answers[0]
    assert "bread" in text.lower()
    assert (tokens > 20, reason) == (True, FinishReason.STOP)


async def test_a_later_attempt_goes_on_in_the_child(engine: ProcessEngine) -> None:
    chunks = [chunk async for chunk in engine.generate(ask("Tell me about tea."), ())]
    done = [token for chunk in chunks[:5] for token in chunk.tokens]
    rest = "".join([chunk.text async for chunk in engine.generate(ask("Tell me about tea."), done)])
    assert "".join(chunk.text for chunk in chunks[:5]) + rest == "".join(chunk.text for chunk in chunks)


async def test_errors_keep_their_type(engine: ProcessEngine) -> None:
    with pytest.raises(EngineError) as refused:
        async for _ in engine.generate(ask(max_tokens=5000), ()):
            pass
    assert (refused.value.code, refused.value.retryable) == ("context_length_exceeded", False)
    await engine.probe()  # and it lives on


async def test_closing_the_iterator_stops_the_work_in_the_child(engine: ProcessEngine) -> None:
    long = ask(max_tokens=1900, temperature=50.0, seed=1)
    steps = engine.steps()
    stream = engine.generate(long, ())
    for _ in range(3):
        await anext(stream)
    await stream.aclose()
    seen: list[int] = []

    async def at_rest() -> bool:
        seen.append(engine.steps())
        await asyncio.sleep(0.1)
        return len(seen) > 6 and len(set(seen[-6:])) == 1

    await until(at_rest, timeout_s=10)
    assert engine.steps() - steps < 1000  # the whole answer would have taken 1,900


async def test_steps_grow_while_it_works(engine: ProcessEngine) -> None:
    before = engine.steps()
    async for _ in engine.generate(ask("Tell me about rain."), ()):
        pass

    async def grown() -> bool:
        return engine.steps() > before

    await until(grown, timeout_s=5)


async def test_the_parent_is_not_held_up_by_the_child(engine: ProcessEngine) -> None:
    async def work() -> None:
        async for _ in engine.generate(ask("Tell me about snow."), ()):
            pass

    working = asyncio.gather(*(work() for _ in range(16)))
    loop, worst = asyncio.get_running_loop(), 0.0
    while not working.done():
        before = loop.time()
        await asyncio.sleep(0.005)
        worst = max(worst, loop.time() - before)
    await working
    assert worst < 0.5


async def test_a_killed_child_ends_everything_open_with_the_evidence() -> None:
    engine = sim()
    await engine.start()
    streams = [engine.generate(ask(max_tokens=2000), ()) for _ in range(3)]
    for stream in streams:
        await anext(stream)
    os.kill(engine.pid or 0, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(EngineDead, match="SIGKILL"):
            async for _ in stream:
                pass
    with pytest.raises(EngineDead, match="SIGKILL"):
        await engine.probe()
    with pytest.raises(EngineDead, match="SIGKILL"):
        await anext(engine.generate(ask(), ()))
    await engine.close()


async def test_a_probe_under_way_fails_when_the_child_dies() -> None:
    engine = sim()
    await engine.start()
    os.kill(engine.pid or 0, signal.SIGSTOP)
    probe = asyncio.create_task(engine.probe())
    await asyncio.sleep(0)
    os.kill(engine.pid or 0, signal.SIGKILL)
    with pytest.raises(EngineDead, match="SIGKILL"):
        await probe
    await engine.close()


async def test_closing_ends_the_child() -> None:
    engine = sim()
    await engine.start()
    pid = engine.pid or 0
    await engine.close()
    assert not is_there(pid)


async def test_an_engine_that_cannot_start_says_so_typed_and_leaves_no_process() -> None:
    engine = ProcessEngine("transformers", WorkerSettings(model="/no/such/folder"))
    with pytest.raises(PenstockError) as refused:
        await engine.start()
    assert (refused.value.code, refused.value.param) == ("bad_setting", "worker.model")
    assert refused.value.hint
    assert not is_there(engine.pid or 0)


async def test_a_child_that_dies_while_loading_is_an_error_of_start() -> None:
    engine = ProcessEngine("transformers", WorkerSettings(device="cpu"))
    starting = asyncio.create_task(engine.start())

    async def runs() -> bool:
        return engine.pid is not None

    await until(runs)
    os.kill(engine.pid or 0, signal.SIGKILL)
    with pytest.raises(PenstockError, match="SIGKILL") as refused:
        await starting
    assert refused.value.code == "engine_crashed"


async def test_the_child_dies_with_its_parent_whatever_kills_that() -> None:
    code = (
        "import asyncio\n"
        "from dispatch.settings import WorkerSettings\n"
        "from worker.engines.process import ProcessEngine\n"
        "async def main():\n"
        "    engine = ProcessEngine('sim', WorkerSettings(engine='sim', model='sim'))\n"
        "    await engine.start()\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    assert is_there(child)
    os.kill(child, signal.SIGSTOP)  # as if it hung: it cannot notice anything by itself
    parent.send_signal(signal.SIGKILL)
    await parent.wait()

    async def gone() -> bool:
        return not is_there(child)

    await until(gone, timeout_s=5)


LOUD = """#!{python}
import os, signal, sys, time
sys.path.insert(0, {root!r})
sys.argv = [sys.argv[0], sys.argv[-1]]
from worker.engines import host
from worker.engines.sim import SimEngine

class Loud(SimEngine):
    async def start(self):
        if {dies!r} == "starting":
            self.die()
        return await super().start()

    async def probe(self):
        self.die()

    def die(self):
        print("it choked on: my secret prompt", file=sys.stderr, flush=True)
        if {heir!r} and os.fork() == 0:
            with open({heir!r}, "w") as file:
                file.write(str(os.getpid()))
            os.rename({heir!r}, {heir!r} + ".ready")
            time.sleep(60)
            os._exit(0)
        while {heir!r} and not os.path.exists({heir!r} + ".ready"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGABRT)

host.load_engine = lambda name, settings: Loud(settings)
host.main()
"""


def loud(monkeypatch: pytest.MonkeyPatch, folder: Path, dies: str, heir: str = "") -> ProcessEngine:
    """Its child writes a prompt to stderr and aborts; an `heir` (the file to write its pid to) keeps all it had open."""
    script = folder / "loud"
    script.write_text(LOUD.format(python=sys.executable, root=str(ROOT), dies=dies, heir=heir))
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    return sim()


def end_by_file(file: Path) -> None:
    os.kill(int(file.read_text()), signal.SIGKILL)


async def test_what_it_wrote_is_no_part_of_the_evidence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "penstock.engine")
    engine = loud(monkeypatch, tmp_path, "asked")
    await engine.start()
    with pytest.raises(EngineDead) as dead:
        await engine.probe()
    assert str(dead.value) == "the engine's process was ended by SIGABRT"
    telling = {record.levelno for record in caplog.records if "secret prompt" in str(record.__dict__)}
    assert telling == {logging.DEBUG}
    await engine.close()


async def test_a_known_diagnosis_among_what_it_wrote_is_evidence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = "RuntimeError: CUDA error: device-side assert triggered"
    advice = "\\nCUDA kernel errors might be reported later\\nFor debugging pass CUDA_LAUNCH_BLOCKING=1\\nCompile with DSA\\n"
    monkeypatch.setattr(sys.modules[__name__], "LOUD", LOUD.replace("it choked on: my secret prompt", said + advice))
    engine = loud(monkeypatch, tmp_path, "asked")
    await engine.start()
    with pytest.raises(EngineDead) as dead:
        await engine.probe()
    assert str(dead.value) == "the engine's process was ended by SIGABRT: CUDA error: device-side assert triggered"
    await engine.close()


async def test_what_it_wrote_when_it_could_not_start_is_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(PenstockError) as refused:
        await loud(monkeypatch, tmp_path, "starting").start()
    assert refused.value.message == "The engine could not start: the engine's process was ended by SIGABRT."
    assert "it choked on" in refused.value.hint


async def test_an_heir_that_keeps_all_open_delays_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heir = tmp_path / "heir"
    engine = loud(monkeypatch, tmp_path, "asked", str(heir))
    await engine.start()
    try:
        async with asyncio.timeout(10):
            with pytest.raises(EngineDead, match="SIGABRT"):
                await engine.probe()
            await engine.close()
    finally:
        end_by_file(Path(f"{heir}.ready"))


async def test_a_child_that_cannot_hear_ends_itself() -> None:
    engine = sim()
    await engine.start()
    assert engine._writer is not None
    body = b"\xc1"  # a frame of no kind
    engine._writer.write(_LENGTH.pack(len(body)) + body)
    with pytest.raises(EngineDead, match="exited with status 70: listening to its worker failed with "):
        async with asyncio.timeout(10):
            await engine.probe()
    await engine.close()


async def test_its_last_words_are_heard_by_a_worker_that_was_busy_and_writes_first() -> None:
    engine = sim()
    await engine.start()
    assert engine._writer is not None and engine._process is not None
    engine._writer.write(_LENGTH.pack(1) + b"\xc1")
    pid = engine._process.pid
    await asyncio.sleep(0)
    _hold_up_until_gone(pid)
    with pytest.raises(EngineDead, match="listening to its worker failed with "):
        async with asyncio.timeout(10):
            await engine.probe()
    await engine.close()


def _hold_up_until_gone(pid: int) -> None:
    """Nothing else of ours runs meanwhile, as on a busy machine: by then it has said all, and is gone."""
    deadline = time.monotonic() + 10
    stat = Path(f"/proc/{pid}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("my secret prompt"), "ticking to its worker failed with RuntimeError"), (EngineDead("it broke"), "it broke")],
)
async def test_a_host_that_cannot_tell_its_steps_ends(error: Exception, said: str) -> None:
    class Broken(SimEngine):
        def steps(self) -> int:
            raise error

    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    host_reader, host_writer = await asyncio.open_connection(sock=theirs)
    host = _Host(host_reader, host_writer)
    host._engine = Broken(WorkerSettings(engine="sim", model="sim", sim_gpu="A10"))
    try:
        async with asyncio.timeout(10):
            assert await host.run() == EXIT_DEAD
            while not isinstance(frame := await read_to_parent(reader), Dying):
                assert frame is not None
        assert frame.evidence == said
    finally:
        for end in (writer, host_writer):
            end.close()
            await end.wait_closed()


async def test_secrets_reach_the_child_as_they_are() -> None:
    document = settings_document(WorkerSettings(upstream_api_key="s3cret", upstream_url="http://127.0.0.1/v1"))
    assert WorkerSettings.model_validate(document).upstream_api_key.get_secret_value() == "s3cret"  # type: ignore[union-attr]
