"""An hour of a trace at 30 times its speed onto a fleet that scales itself, while workers, agents and leaders are killed.

`python -m bench.scale_trace --trace azure_llm_inference_2023_code.csv [--seed 1]`. Two models take turns with its requests; three
autoscalers, three hosts in network namespaces with two GPUs each. Every fourth request is played, on GPUs a quarter of 30 times
as fast: the load of the hour on two cores. What must hold is checked on the recorded history (bench/scale_checks.py).
"""

import argparse
import asyncio
import itertools
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.asking import client, records, submit, told
from bench.live import prompt_of
from bench.scale_checks import Verdict, judge
from bench.scale_watch import Watch, lives, watching
from bench.scaled import GIB, ScaledFleet, scaled_fleet, until
from penstock.simulator.trace import Arrival, read_trace

SPEED = 30.0
_EVERY = 4
_POOLS = ("a", "b")
_KILLS = (("worker", 0.5), ("agent", 0.25), ("leader", 0.25))
_KILL_EVERY_S = (2.0, 6.0)
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Kill:
    """One SIGKILL. `what`: the launch, host or autoscaler; `pool` of a worker."""

    at: float
    kind: str
    what: str
    pool: str = ""


@dataclass
class Run:
    """What a run left. `left`: processes that were there after all had been told to end."""

    seed: int
    played: int
    apart: bool
    began: float = 0.0
    ended: float = 0.0
    kills: list[Kill] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    refusals: int = 0
    slowest_submit_s: float = 0.0


def pools(speed: float) -> dict[str, Any]:
    """Two models on A10s; spans that an operator would set to minutes are seconds."""
    worker = {"engine": "sim", "sim_gpu": "A10", "sim_speed": f"{speed / _EVERY:g}"}
    common = {"max": 3, "target_s": 2, "down_window_s": 4, "idle_timeout_s": 8, "need_bytes": 20 * GIB, "worker": worker}
    return {name: {**common, "model": name} for name in _POOLS}


async def run(trace: list[Arrival], speed: float, seed: int) -> tuple[Run, Watch]:
    """All of it."""
    played = [Arrival(a.at_s / speed, a.prompt_tokens, a.answer_tokens) for a in trace[::_EVERY]]
    # An hour's kills come in two minutes: they may hit one request more often than the default forgives.
    numbers = {"PENSTOCK_AUTOSCALER__LEASE_S": "3", "PENSTOCK_QUEUE__MAX_ATTEMPTS": "10"}
    async with scaled_fleet(pools(speed), autoscalers=3, agents=3, environment=numbers) as fleet:
        told_of = Run(seed, len(played), fleet.hosts.apart)
        async with watching(fleet.url, {name: name for name in _POOLS}, every_s=0.1) as watch, client() as http:
            for name in _POOLS:
                await until(lambda name=name: _has_card(http, fleet, name), f"the card of {name}", 60)  # type: ignore[misc]
            told_of.began = time.time()
            killing = asyncio.create_task(_kill_on(fleet, watch, told_of, random.Random(seed)))
            try:
                ids = await _play(http, fleet, played, told_of)
            finally:
                killing.cancel()
                ended = (await asyncio.gather(killing, return_exceptions=True))[0]
            if isinstance(ended, Exception):
                raise ended
            await until(lambda: _is_over(watch), "all to be done, and no worker to be left", _PATIENCE_S)
            told_of.ended = time.time()
            told_of.records = await records(http, fleet.gateway, ids)
        told_of.orphans = list(fleet.orphans().values())
        told_of.refusals = sum(
            fleet.said(name).count("refuse orders of an older epoch") for name in fleet.slots if "agent" in name
        )
        for name in sorted(fleet.slots):
            await fleet.stop(name)
        told_of.left = list(fleet.living().values())
    return told_of, watch


async def _play(http: Any, fleet: ScaledFleet, played: list[Arrival], told_of: Run) -> list[str]:
    async def one(index: int, arrival: Arrival) -> str:
        await asyncio.sleep(max(0.0, told_of.began + arrival.at_s - time.time()))
        sent = time.monotonic()
        request = await submit(http, fleet.gateway, _body(index, arrival))
        told_of.slowest_submit_s = max(told_of.slowest_submit_s, time.monotonic() - sent)
        return request

    return list(await asyncio.gather(*(one(i, a) for i, a in enumerate(played))))


def _body(index: int, arrival: Arrival) -> dict[str, Any]:
    prompt = prompt_of(max(1, arrival.prompt_tokens), index)
    return {"model": _POOLS[index % 2], "prompt": prompt, "max_tokens": max(1, arrival.answer_tokens), "ignore_eos": True}


async def _has_card(http: Any, fleet: ScaledFleet, model: str) -> bool:
    try:
        await submit(http, fleet.gateway, {"model": model, "prompt": "first", "max_tokens": 1})
    except RuntimeError:
        await asyncio.sleep(0.2)
        return False
    return True


def _is_over(watch: Watch) -> bool:
    last = [watch.last(name) for name in _POOLS]
    return all(s is not None and not (s.waiting or s.running or s.desired or s.there) for s in last)


async def _kill_on(fleet: ScaledFleet, watch: Watch, told_of: Run, rng: random.Random) -> None:
    """Somebody every few seconds; where there is nobody of the chosen kind, nobody."""
    while True:
        await asyncio.sleep(rng.uniform(*_KILL_EVERY_S))
        kind = rng.choices([k for k, _ in _KILLS], [w for _, w in _KILLS])[0]
        draw = rng.random()
        if kind == "worker":
            found = sorted((name, pid, s.pool) for s in _last(watch) for name, (_, pid) in s.there.items() if lives(pid))
            if found:
                name, pid, pool = found[int(draw * len(found))]
                os.kill(pid, signal.SIGKILL)
                told_of.kills.append(Kill(time.time(), kind, name, pool))
        elif kind == "agent":
            names = sorted(name for name in fleet.slots if name.startswith("agent-") and fleet.slots[name].pid)
            if names:
                fleet.kill(name := names[int(draw * len(names))])
                told_of.kills.append(Kill(time.time(), kind, name))
        else:
            leader = next((s.leader for s in _last(watch) if s.leader), "")
            pid = int(leader.split("-")[-2]) if leader else 0
            mine = [name for name, slot in fleet.slots.items() if name.startswith("autoscaler") and slot.pid and slot.pid == pid]
            if mine:
                fleet.kill(mine[0])
                told_of.kills.append(Kill(time.time(), kind, leader))


def _last(watch: Watch) -> list[Any]:
    return [s for s in (watch.last(name) for name in _POOLS) if s is not None]


def report(told_of: Run, verdict: Verdict, speed: float) -> str:
    """For people."""
    kinds = {kind: sum(1 for k in told_of.kills if k.kind == kind) for kind, _ in _KILLS}
    ends = told(told_of.records)
    most = {pool: max(n for _, n in found) for pool, found in verdict.desired.items()}
    rows = [
        (
            "trace",
            f"{told_of.played} requests (every fourth), at {speed:g} x its speed, in {told_of.ended - told_of.began:.0f} s",
        ),
        ("SIGKILLs", ", ".join(f"{n} {kind}s" for kind, n in kinds.items())),
        ("most workers wanted", ", ".join(f"{pool}: {n}" for pool, n in most.items())),
        *((what, str(n)) for what, n in ends.items()),
        *verdict.rows(),
        ("orders of an older epoch that agents saw and refused", str(told_of.refusals)),
        ("workers nobody tends, at zero", str(len(told_of.orphans))),
        ("processes left after all were told to end", str(len(told_of.left))),
    ]
    head = f"| seed {told_of.seed}, {'network namespaces' if told_of.apart else 'one network'} | |\n|---|---|\n"
    return head + "\n".join(f"| {what} | {value} |" for what, value in rows)


def story(told_of: Run, watch: Watch) -> str:
    """Kills, decisions that were more than a hold, changes of orders, and requests that did not end well, in their order."""
    lines = [(k.at, f"KILL {k.kind} {k.what} {k.pool}") for k in told_of.kills]
    for d in watch.decisions:
        limits = f" [{', '.join(d.limits)}]" if d.limits else ""
        lines.append((d.at_ms / 1000, f"{d.pool} e{d.epoch} {d.action} {d.from_workers} -> {d.to_workers} {d.reason}{limits}"))
    for pool in watch.pools:
        for before, after in itertools.pairwise(watch.of(pool)):
            if before.desired != after.desired:
                lines.append((after.at, f"{pool} ordered {before.desired} -> {after.desired}, {after.ready} ready"))
    for record in told_of.records:
        if record.get("status") != "completed":
            past = "; ".join(
                f"{a['worker']} until {a['left_at_ms'] / 1000 - told_of.began:.1f} {a['why']}" for a in record.get("story", ())
            )
            at = (record.get("ended_at_ms") or 0) / 1000
            lines.append((at, f"{record.get('status')} {record.get('id')} charged {record.get('charged')}: {past}"))
    return "\n".join(f"{at - told_of.began:7.1f} s  {what}" for at, what in sorted(lines))


async def _main(args: argparse.Namespace) -> int:
    trace = [a for a in read_trace(args.trace) if a.at_s <= args.minutes * 60]
    code = 0
    for seed in args.seed:
        told_of, watch = await run(trace, args.speed, seed)
        verdict = judge(watch, told_of.kills, told_of.began)
        print(report(told_of, verdict, args.speed), flush=True)
        print("\n".join(("", *verdict.misses, *verdict.violations)), flush=True)
        if args.story:
            args.story.with_suffix(f".{seed}").write_text(story(told_of, watch))
        ends = told(told_of.records)
        bad = ends["completed"] < ends["requests"] or told_of.orphans or told_of.left or verdict.violations or verdict.misses
        code = 1 if bad else code
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A trace, and kills, on a fleet that scales itself.")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--speed", type=float, default=SPEED)
    parser.add_argument("--story", type=Path, help="where to write what happened, moment by moment; the seed is added")
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    raise SystemExit(asyncio.run(_main(parser.parse_args())))
