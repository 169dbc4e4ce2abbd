"""`penstock top`: the numbers it derives, the lines it draws, and the screen on a real terminal."""

import asyncio
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.reports import GpuStatus
from dispatch.scale_store import ScaleStore
from dispatch.scaling import Action
from dispatch.states import WorkerState
from penstock.cli import main
from penstock.screen.looks import Look, Looks, quantile
from penstock.screen.top import Options, Order, bar, drawn, trend
from tests.gateway.helpers import MODEL, FakeWorker, Running, serving, settings_for
from tests.gateway.pools import Scaler
from tests.gateway.stand_ins import StandIns
from tests.servers import RealServer, binaries, running

PENSTOCK = str(Path(sys.executable).parent / "penstock")
GIB = 1024**3
INFINITE = float("inf")
METRICS = """
penstock_redis_answer_seconds 0.0004
penstock_requests_rejected_total{reason="queue_full"} 2
penstock_requests_rejected_total{reason="too_large"} 1
penstock_dead_letter_depth{queue="demo"} 2
penstock_time_to_first_token_seconds_bucket{le="0.1",model="demo"} 0
penstock_time_to_first_token_seconds_bucket{le="0.5",model="demo"} 90
penstock_time_to_first_token_seconds_bucket{le="1.0",model="demo"} 100
penstock_time_to_first_token_seconds_bucket{le="+Inf",model="demo"} 100
"""


def queue_of(model: str = "demo", **more: Any) -> dict[str, Any]:
    return {"model": model, "backlog": 0, "oldest_wait_ms": 0, "running": 0, "paused": False, "totals": {}, **more}


def worker_of(name: str, **more: Any) -> dict[str, Any]:
    gpu = {"name": "H200", "total_bytes": 139 * GIB, "free_bytes": 43 * GIB, "utilisation": 0.91}
    document = {"id": name, "host": "gpu-a", "gpu": gpu, "running": 7, "slots": 12, "weight": 5.8, "tokens_per_s": 412.4}
    state = {"model": "demo", "state": "ready", "progress": None, "error": None, "heartbeat_age_ms": 800}
    return {**document, **state, "held_tokens": 18_000, "limit_tokens": 100_000, **more}


def pool_of(**more: Any) -> dict[str, Any]:
    decided = {"action": "up", "reason": "oldest wait 14.2 s > 5 s", "limits": ["step_up<=1"], "dry_run": False}
    leader = {"id": "as-1", "epoch": 1, "leads": True}
    document = {"pool": "p", "workers": {"ready": 2, "starting": 1}, "desired": 3, "min": 0, "max": 4, "decided": decided}
    return {**document, "leader": leader, "paused": False, "crash_loops": 0, "unplaceable": None, **more}


def screen(*looks: Look, **options: Any) -> str:
    kept = Looks()
    for look in looks:
        kept.add(look)
    return "\n".join(drawn(kept, Options("http://gw", "12:03:24", **options)))


def row(text: str, first: str) -> str:
    (found,) = [line for line in text.splitlines() if line.split()[:1] == [first]]
    return found


# ---- numbers


def test_what_metrics_tell() -> None:
    look = Look.of(0, [], [], [], METRICS)
    assert (look.rejected, look.redis_s, look.dead) == (3, 0.0004, {"demo": 2})
    assert look.first_token["demo"] == {0.1: 0, 0.5: 90, 1.0: 100, INFINITE: 100}


def test_a_rate_is_of_all_endings_over_the_last_seconds() -> None:
    looks = Looks()
    for second in range(30):
        totals = {"completed": 5 * second if second < 15 else 75 + 2 * (second - 15), "failed": second, "enqueued": 1000 * second}
        looks.add(Look(100.0 + second, [queue_of(totals=totals)]))
    assert looks.rate("demo") == pytest.approx(3.0)
    assert looks.rate("unknown") == 0
    looks.add(Look(131.0, [queue_of(totals={})]))
    assert looks.rate("demo") == 0, "an emptied Redis makes no negative rate"
    assert Looks([Look(1.0, [queue_of()])]).rate("demo") is None


def test_a_minute_is_kept_and_the_p95_is_of_that_minute() -> None:
    looks = Looks()
    for second in range(200):
        slow = min(second, 100)
        looks.add(
            Look(
                float(second),
                [queue_of(backlog=second)],
                first_token={"demo": {0.5: second, 4.0: second + slow, INFINITE: second + slow}},
            )
        )
    assert 60 <= len(looks.kept) <= 62
    assert looks.first_token_p95_s("demo") == pytest.approx(0.475), "what was slow a minute ago does not count"
    assert looks.first_token_p95_s("other") is None
    assert looks.backlogs("demo", 12)[-1] == 199 and len(looks.backlogs("demo", 12)) <= 12


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        ({}, None),
        ({1.0: 0, INFINITE: 0}, None),
        ({0.1: 0, 0.5: 90, 1.0: 100, INFINITE: 100}, 0.75),
        ({1.0: 100, INFINITE: 100}, 0.95),
        ({1.0: 1, INFINITE: 100}, 1.0),
    ],
)
def test_quantiles_are_as_prometheus_has_them(buckets: dict[float, float], expected: float | None) -> None:
    assert quantile(buckets, 0.95) == (None if expected is None else pytest.approx(expected))


def test_bars() -> None:
    assert (bar(0, 4), bar(0.01, 4), bar(0.5, 4), bar(1, 4), bar(7, 4)) == ("░░░░", "█░░░", "██░░", "████", "████")
    assert (trend([]), trend([0, 0]), trend([0, 4, 8])) == ("", "▁▁", "▁▅█")


# ---- lines


def test_the_screen_of_a_busy_cluster() -> None:
    before = Look.of(0, [queue_of(totals={"completed": 10})], [], [], "")
    now = Look.of(
        5,
        [queue_of(backlog=41, oldest_wait_ms=14_200, running=8, totals={"completed": 30}), queue_of("batch", paused=True)],
        [worker_of("w-1"), worker_of("w-2", gpu=None, state="loading", progress="62 %", running=0, heartbeat_age_ms=4_000)],
        [pool_of()],
        METRICS,
    )
    text = screen(before, now)
    title = text.splitlines()[0]
    assert title == "penstock top   http://gw   redis 0.4 ms   12:03:24   leader as-1   rejected 3"
    assert row(text, "demo").split() == ["demo", "41", "14.2s", "8", "4.0", "0.75s", "2", "▁█"]
    assert row(text, "batch").split()[:5] == ["batch", "(paused)", "0", "-", "0"]
    assert re.split(r"\s{2,}", row(text, "w-1")) == [
        *("w-1", "gpu-a", "H200", "██████░░", "96.0 GiB / 139.0 GiB", "91 %", "█░░░░░░░", "18.0k / 100.0k"),
        *("7/12", "5.8", "412", "demo", "busy", "0.8s"),
    ]
    assert re.split(r"\s{2,}", row(text, "w-2"))[2:5] == ["-", "-", "-"] and "loading 62 %" in row(text, "w-2")
    assert row(text, "p") == "p      2 ready + 1 starting -> desired 3 · up: oldest wait 14.2 s > 5 s · 0 to 4 · step_up<=1"
    columns = {line.index("DESIRED") if "DESIRED" in line else len(line) for line in text.splitlines()}
    assert max(columns) < 200 and "\x1b" not in text


def test_trouble_is_said() -> None:
    pool = pool_of(crash_loops=2, unplaceable="no GPU is free", paused=True, leader={"id": "as-1", "epoch": 1, "leads": False})
    text = screen(Look(0, pools=[pool]), stale="since 12:00:00: Cannot reach it", paused=True)
    for part in ("No queues yet", "No workers.", "redis away", "leader nobody", "stale: since 12:00:00", "nobody leads"):
        assert part in text
    for part in ("2 in a crash loop", "unplaceable: no GPU is free", "paused"):
        assert part in row(text, "p")


def test_colours_take_no_room_and_lines_are_cut() -> None:
    look = Look(0, [queue_of()], [worker_of("w-1"), worker_of("w-2")], [pool_of()])
    coloured = screen(look, width=70, colour=True)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert "\x1b[1;36m" in coloured and all(len(line) <= 70 for line in bare.splitlines())
    assert [line.rstrip() for line in bare.splitlines()] == screen(look, width=70).splitlines()


def test_workers_are_sorted_as_asked() -> None:
    gpu = {"name": "A10", "total_bytes": 24 * GIB, "free_bytes": GIB}
    look = Look(0, workers=[worker_of("a"), worker_of("b", running=9), worker_of("c", gpu=gpu)])
    orders = {order: re.findall(r"^([abc]) ", screen(look, order=order), re.M) for order in Order}
    assert orders == {Order.NAME: ["a", "b", "c"], Order.BUSY: ["b", "a", "c"], Order.MEMORY: ["c", "a", "b"]}


# ---- the verb


@pytest.fixture(scope="session")
def server() -> Iterator[RealServer]:
    """One is enough: what is stored is tested on both (tests/dispatch)."""
    with running(min(binaries())) as found:
        yield found


@pytest.fixture
async def gateway(redis: Redis, server_url: str, queue: Queue, fleet: Fleet) -> AsyncIterator[Running]:
    """With a worker, a pool, and a request that waits."""
    await FakeWorker(queue, fleet).publish()
    workers = StandIns(queue, fleet)
    gpu = GpuStatus("GPU-1", "H200", 139 * GIB, 43 * GIB, 0.91)
    await workers.say("w-1", WorkerState.READY, gpu=gpu, slots=12, limit_tokens=1000, held_tokens=250, weight=5.8)
    await Scaler(ScaleStore(redis)).say("p", Action.UP, 0, 1, workers={"ready": 1}, reason="it waits")
    async with serving(settings_for(server_url)) as found:
        answer = await found.client.post("/v1/requests", json={"model": MODEL, "prompt": "hello"})
        assert answer.status_code == 202
        yield found


async def test_once_without_a_terminal(gateway: Running, capsys: pytest.CaptureFixture[str]) -> None:
    code = await asyncio.to_thread(main, ("top", "--once", "-i", "100ms", "--server", gateway.url))
    text = capsys.readouterr().out
    assert code == 0 and "\x1b" not in text
    assert row(text, "demo").split()[1:5] == ["1", row(text, "demo").split()[2], "0", "0.0"]
    assert "96.0 GiB / 139.0 GiB" in row(text, "w-1") and "250 / 1.0k" in row(text, "w-1")
    assert "1 ready -> desired 1 · up: it waits" in row(text, "p") and "leader as-1" in text


def test_no_gateway_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--server", "http://127.0.0.1:1"]) == 3
    assert "Cannot reach the gateway" in capsys.readouterr().err


class Terminal:
    """A real `penstock top` on a terminal of its own."""

    def __init__(self, url: str) -> None:
        self.end, ours = pty.openpty()
        termios.tcsetwinsize(ours, (40, 160))
        self.before = termios.tcgetattr(ours)
        self.ours = ours
        self.process = subprocess.Popen(
            [PENSTOCK, "top", "-i", "100ms", "--server", url],
            stdin=ours,
            stdout=ours,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: _control(0),
        )
        self.seen = ""

    def until(self, pattern: str, within_s: float = 15) -> None:
        """Read until what came since the last call matches."""
        deadline = time.monotonic() + within_s
        self.seen = ""
        while not re.search(pattern, self.seen, re.S):
            assert time.monotonic() < deadline, f"{pattern!r} in vain: {self.seen[-2000:]!r}"
            if select.select([self.end], [], [], 0.2)[0]:
                self.seen += os.read(self.end, 65536).decode("utf-8", "replace")

    def press(self, key: str) -> None:
        os.write(self.end, key.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.end)
        os.close(self.ours)


def _control(descriptor: int) -> None:
    """Make a terminal the controlling one, so that its Ctrl-C arrives as a signal."""
    import fcntl
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize(("key", "code"), [("q", 0), ("\x03", 130)], ids=["q", "ctrl-c"])
async def test_a_terminal_is_left_as_it_was(gateway: Running, key: str, code: int) -> None:
    terminal = await asyncio.to_thread(Terminal, gateway.url)
    try:
        await asyncio.to_thread(terminal.until, r"\x1b\[\?1049h.*q quit.*w-1.*desired 1")
        terminal.press("s")
        await asyncio.to_thread(terminal.until, r"sort: busy")
        terminal.press("p")
        await asyncio.to_thread(terminal.until, r"paused")
        terminal.press(key)
        await asyncio.to_thread(terminal.until, r"\x1b\[\?1049l")
        assert await asyncio.to_thread(terminal.process.wait, 10) == code
        assert termios.tcgetattr(terminal.ours)[3] == terminal.before[3], "echo and line mode are back"
    finally:
        await asyncio.to_thread(terminal.close)


async def test_a_gateway_that_goes_away_is_told_on_the_screen(gateway: Running, redis: Redis) -> None:
    terminal = await asyncio.to_thread(Terminal, gateway.url)
    try:
        await asyncio.to_thread(terminal.until, "w-1")
        gateway.server.should_exit = True
        await asyncio.to_thread(terminal.until, "stale: since .*Cannot reach the gateway.*w-1")
        terminal.press("q")
        await asyncio.to_thread(terminal.until, r"\x1b\[\?1049l")
    finally:
        await asyncio.to_thread(terminal.close)
