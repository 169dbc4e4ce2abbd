"""`penstock scale` against a gateway, and an autoscaler that only writes: what people read and set."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from dispatch.scale_store import ScaleStore
from dispatch.scaling import Action, LaunchState, PoolOverride
from penstock.cli import main
from tests.gateway.helpers import Running, serving, settings_for
from tests.gateway.pools import Scaler, report
from tests.servers import RealServer, binaries, running


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Verb = Callable[..., Awaitable[Said]]


@pytest.fixture(scope="session")
def server() -> Iterator[RealServer]:
    """One is enough: what is stored is tested on both (tests/dispatch)."""
    with running(min(binaries())) as found:
        yield found


@pytest.fixture
async def gateway(redis: Redis, server_url: str) -> AsyncIterator[Running]:
    async with serving(settings_for(server_url)) as found:
        yield found


@pytest.fixture
def scaler(redis: Redis) -> Scaler:
    return Scaler(ScaleStore(redis))


@pytest.fixture
def verb(gateway: Running, capsys: pytest.CaptureFixture[str]) -> Verb:
    async def run(*arguments: str) -> Said:
        code = await asyncio.to_thread(main, ("scale", *arguments, "--server", gateway.url))
        return Said(code, *capsys.readouterr())

    return run


async def crashing(scaler: Scaler) -> None:
    await scaler.say("p", Action.UP, 1, 3, ago_s=6, reason="oldest wait 14.2 s > target 5 s")
    await scaler.say(
        "p",
        to=3,
        raw=4.1,
        log=False,
        ago_s=2,
        reason="as many as may be",
        limits=("max 3",),
        bounds=(0, 3),
        workers={"ready": 2, "starting": 0, "failed": 1},
        reports=(report("l-3", LaunchState.CRASH_LOOP, ago_s=90, host="gpu-a", exits=6, error="CUDA error"),),
    )


async def test_without_an_autoscaler_it_says_how_to_get_one(verb: Verb) -> None:
    for arguments in ((), ("show",), ("explain",)):
        said = await verb(*arguments)
        assert said.code == 0 and said.out == "" and "penstock autoscaler" in said.err


async def test_show_is_for_eyes_or_for_programs(verb: Verb, scaler: Scaler) -> None:
    await crashing(scaler)
    await scaler.say("q", to=0)
    await scaler.store.override("q", PoolOverride(max=2, paused=True))
    said = await verb("show")
    head, p, q = said.out.splitlines()
    assert head.split()[:4] == ["POOL", "MODEL", "WORKERS", "DESIRED"]
    assert re.search(
        r"^p .* 2 ready, 1 failed +3 +0\.\.3 +as-1 +1 in a crash loop +hold 3 [2-9]\.\ds ago: as many as may be$", p
    ), p
    assert "paused, max set" in q
    assert not re.search(r"\d{12}|[{}\[\]]", said.out), "no epoch milliseconds and no JSON in a table"
    one = (await verb("show", "p")).out
    assert re.search(r"l-3 +gpu-a +crash_loop +6 +1m3\ds ago +CUDA error", one)
    assert [pool["pool"] for pool in (await verb("show", "-o", "json")).json["data"]] == ["p", "q"]
    assert (await verb("show", "p", "-o", "json")).json["workers"]["ready"] == 2


async def test_who_does_not_lead_is_shown(verb: Verb, scaler: Scaler) -> None:
    await scaler.say("p")
    await scaler.store.resign("main", "as-1")
    assert "nobody (last as-1)" in (await verb("show")).out
    assert "nobody leads group 'main'" in (await verb("explain", "p")).out


async def test_explain_says_why_line_by_line(verb: Verb, scaler: Scaler) -> None:
    await crashing(scaler)
    lines = (await verb("explain")).out.splitlines()
    assert lines[0].startswith("p: 2 ready, 1 failed -> 3 (of 0 to 3)")
    codes = [line.split()[0] for line in lines[1:]]
    assert codes == ["decision", "change", "limited", "crash_loop"]
    assert "held by max 3" in lines[3] and "ended 6 times and is not started again: CUDA error" in lines[4]
    (document,) = (await verb("explain", "-o", "json")).json["data"]
    assert [line["code"] for line in document["why"]] == codes


async def test_set_pause_and_resume(verb: Verb, scaler: Scaler) -> None:
    await scaler.say("p", to=1)
    said = await verb("set", "p", "--min", "1", "--max", "3", "--target", "500ms")
    assert said.out.startswith("p is scaled; set over its settings: min 1, max 3, target 0.5.")
    assert (await verb("pause", "p")).out.startswith("p is paused; ")
    assert await scaler.store.overrides() == {"p": PoolOverride(1, 3, 0.5, True)}
    assert (await verb("resume", "p", "-o", "json")).json["paused"] is False
    assert (await verb("set", "p", "--reset", "--max", "2")).out.startswith("p is scaled; set over its settings: max 2.")
    assert "set over its settings: nothing" in (await verb("set", "p", "--reset")).out
    assert await scaler.store.overrides() == {}


async def test_what_cannot_be_is_told_in_three_parts(verb: Verb, scaler: Scaler) -> None:
    await scaler.say("p", to=1, bounds=(0, 4))
    for arguments, code, parts in (
        (
            ("set", "p", "--min", "9"),
            2,
            ("min: the least number of workers would be 9, and the most 4", "do:  Set min to"),
        ),
        (("set", "p"), 2, ("needs something to set", "penstock scale set p --max 4")),
        (("set", "p", "--max", "-1"), 2, ("--max",)),
        (("pause", "nobody"), 1, ("No such pool", "There is no pool 'nobody'", "Pools here: p.")),
        (("history", "nobody/../p"), 1, ("There is no such page",)),
        (("history", "-f", "-o", "json"), 2, ("Use -o jsonl",)),
        (("history", "-n", "0"), 2, ("is not 1 or more",)),
    ):
        said = await verb(*arguments)
        assert said.code == code and [part for part in parts if part not in said.err] == [], (arguments, said)
    assert await scaler.store.overrides() == {}


async def test_history_reads_downwards_over_pages(verb: Verb, scaler: Scaler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.commands.scale._PAGE", 3)
    assert "Nothing was decided yet." in (await verb("history")).err
    for n in range(8):
        await scaler.say("p", Action.UP, n, n + 1, limits=("step_up<=1",))
        await scaler.say("q")
    lines = (await verb("history", "p", "-n", "5")).out.splitlines()
    assert [re.search(r"up (\d) -> \d", line)[1] for line in lines[1:]] == ["3", "4", "5", "6", "7"]  # type: ignore[index]
    assert all(re.match(r"\d\d:\d\d:\d\d \(\d\.\ds ago\)  p ", line) and "step_up<=1" in line for line in lines[1:])
    rows = [json.loads(line) for line in (await verb("history", "-o", "jsonl", "-n", "16")).out.splitlines()]
    assert [row["pool"] for row in rows] == ["p", "q"] * 8


async def test_follow_misses_and_repeats_nothing(
    verb: Verb, scaler: Scaler, gateway: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("penstock.commands.scale._PAGE", 3)
    await scaler.say("p", Action.UP, 0, 1)
    rounds, loop = [1, 7, 0, 2], asyncio.get_running_loop()
    written = 1

    async def write(count: int) -> None:
        nonlocal written
        for _ in range(count):
            written += 1
            await scaler.say("p", Action.UP, written - 1, written)

    def between_looks(_: float) -> None:
        if not rounds:
            raise KeyboardInterrupt
        asyncio.run_coroutine_threadsafe(write(rounds.pop(0)), loop).result(10)

    monkeypatch.setattr("penstock.commands.scale.time.sleep", between_looks)
    said = await verb("history", "p", "-f")
    assert said.code == 130
    assert re.findall(r"up \d+ -> (\d+)", said.out) == [str(n) for n in range(1, 12)]
