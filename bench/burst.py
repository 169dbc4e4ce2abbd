"""A burst onto no worker at all: `python -m bench.burst local|agents [--requests 500] [--picture FILE.svg]`.

The fleet is at zero and its card is known; then all requests come at once. Told: when the workers were there, when the line was
empty, when the fleet was at zero again; how every request ended and what it cost; what the decision log says.
`local` is `penstock up`, its workers its own children; `agents` are three hosts in network namespaces of their own.
"""

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx

from bench.asking import client, records, submit, submit_all, told
from bench.scale_watch import Sample, Watch, watching
from bench.scaled import GIB, scaled_fleet, until
from dispatch.scaling import Action, DecisionRecord
from tests.cli.household import up

POOL = "demo"
MOST = 4
IDLE_S = 8.0
TARGET_S = 5.0
_TOKENS = 40
_TURN_S = 60.0
_PATIENCE_S = 240.0


@dataclass(frozen=True)
class Stand:
    """A fleet that stands: how to reach it, and what of it lives. `leftovers`: workers that nobody tends."""

    redis: str
    gateway: str
    group: str
    where: str
    leftovers: Any


@dataclass(frozen=True)
class Burst:
    """What was measured. Spans in seconds from the first submit."""

    where: str
    requests: int
    submitted_s: float
    first_ready_s: float
    most: int
    most_ready_s: float
    drained_s: float
    zero_s: float
    idle_s: float
    endings: dict[str, int]
    queue_delay_s: tuple[float, float]
    leftovers: int
    samples: list[Sample]
    decisions: list[DecisionRecord]
    began: float


def pool(most: int = MOST, **more: Any) -> dict[str, Any]:
    """Workers like an A10 a quarter as fast, 32 requests at once: about 215 tokens/s each."""
    return {
        "model": "demo",
        "max": most,
        "idle_timeout_s": IDLE_S,
        "down_window_s": 3,
        "target_s": TARGET_S,
        "worker": {"engine": "sim", "sim_gpu": "A10", "sim_speed": "0.25", "slots": "32"},
        **more,
    }


@contextlib.asynccontextmanager
async def local(most: int = MOST) -> AsyncIterator[Stand]:
    """`penstock up`."""
    with (
        tempfile.TemporaryDirectory(prefix="penstock-burst-") as folder,
        up(Path(folder), "--ephemeral", ready=False, PENSTOCK_AUTOSCALER__POOLS=json.dumps({POOL: pool(most)})) as household,
    ):
        await asyncio.to_thread(household.until, lambda: "Ctrl-C stops everything" in household.output, "`up` to stand")

        def workers() -> list[str]:
            return [line for line in household.living().values() if "penstock worker" in line]

        yield Stand(_redis_of(household.living()), household.url, "up", "local", workers)


def _redis_of(pids: Iterable[int]) -> str:
    """The server that `up` gave its gateway."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if pair.startswith(b"PENSTOCK_REDIS__URL="):
                    return pair.partition(b"=")[2].decode()
    raise RuntimeError("no process of `up` knows a server")


@contextlib.asynccontextmanager
async def agents(autoscalers: int = 2, hosts: int = 3, most: int = MOST, **environment: str) -> AsyncIterator[Stand]:
    """Autoscalers, and an agent on each host; a worker needs most of a GPU."""
    pools = {POOL: pool(most, need_bytes=20 * GIB)}
    async with scaled_fleet(pools, autoscalers=autoscalers, agents=hosts, environment=environment) as fleet:
        apart = "network namespaces" if fleet.hosts.apart else "one network: no namespaces could be made"
        where = f"agents ({hosts} hosts in {apart}, {autoscalers} autoscalers)"
        yield Stand(fleet.url, fleet.gateway, "main", where, lambda: list(fleet.orphans().values()))


async def play(stand: Stand, requests: int, *, rest_s: float = _TURN_S) -> Burst:
    """Wait for the card and for zero, rest so long, then the burst, until it is at zero again."""
    async with watching(stand.redis, {POOL: POOL}, stand.group) as watch, client() as http:
        await until(lambda: _has_card(http, stand), "the model's card", 60)
        await until(lambda: _is_at_zero(watch, stand), "the fleet to be at zero", _PATIENCE_S)
        # The first worker that went was a turn, and a pool turns once a minute.
        await asyncio.sleep(rest_s)
        began = time.time()
        bodies = [_body(number) for number in range(requests)]
        ids = await submit_all(http, stand.gateway, bodies)
        submitted_s = time.time() - began
        await until(lambda: _is_drained(watch, began), "the line to be empty", _PATIENCE_S)
        await until(lambda: _is_at_zero(watch, stand), "the fleet to be at zero again", _PATIENCE_S)
        found = await records(http, stand.gateway, ids)
        await asyncio.sleep(1.0)  # the last decision's tick
    samples = [s for s in watch.of(POOL) if s.at >= began - 3.0]
    after = [s for s in samples if s.at >= began]
    most = max(s.desired for s in after)
    drained = next(s.at for s in after if s.at > began + submitted_s and not s.waiting and not s.running)
    delays = sorted((r["begun_at_ms"] - r["created_at_ms"]) / 1000 for r in found if r.get("begun_at_ms"))
    return Burst(
        where=stand.where,
        requests=requests,
        submitted_s=submitted_s,
        first_ready_s=next(s.at for s in after if s.ready) - began,
        most=most,
        most_ready_s=next(s.at for s in after if s.ready == most) - began,
        drained_s=drained - began,
        zero_s=next(s.at for s in after if s.at > drained and not s.there) - began,
        idle_s=IDLE_S,
        endings=told(found),
        queue_delay_s=(delays[len(delays) // 2], delays[int(len(delays) * 0.95)]) if delays else (0.0, 0.0),
        leftovers=len(stand.leftovers()),
        samples=samples,
        decisions=[d for d in watch.decisions if d.at_ms / 1000 >= began],
        began=began,
    )


def _body(number: int) -> dict[str, Any]:
    return {"model": "demo", "prompt": f"burst {number}", "max_tokens": _TOKENS, "ignore_eos": True}


async def _has_card(http: httpx.AsyncClient, stand: Stand) -> bool:
    try:
        await submit(http, stand.gateway, _body(-1))
    except RuntimeError:
        await asyncio.sleep(0.2)
        return False
    return True


def _is_at_zero(watch: Watch, stand: Stand) -> bool:
    last = watch.last(POOL)
    return last is not None and not (last.there or last.desired or last.waiting or last.running or stand.leftovers())


def _is_drained(watch: Watch, began: float) -> bool:
    last = watch.last(POOL)
    return last is not None and last.at > began and not last.waiting and not last.running


# ---- telling


def table(burst: Burst) -> str:
    """For people."""
    rows = [
        ("submitted, all", f"{burst.submitted_s:.1f} s"),
        ("first worker ready", f"{burst.first_ready_s:.1f} s"),
        (f"target number of workers ({burst.most}) ready", f"{burst.most_ready_s:.1f} s"),
        ("wait in line, median / p95", f"{burst.queue_delay_s[0]:.1f} / {burst.queue_delay_s[1]:.1f} s"),
        ("line empty, nothing running", f"{burst.drained_s:.1f} s"),
        (
            "no worker left",
            f"{burst.zero_s:.1f} s ({burst.zero_s - burst.drained_s:.1f} s after the end; idle timeout {burst.idle_s:g} s)",
        ),
        *((what, str(number)) for what, number in burst.endings.items()),
        ("worker processes left", str(burst.leftovers)),
    ]
    head = f"| {burst.where}, {burst.requests} requests onto none | |\n|---|---|\n"
    return head + "\n".join(f"| {what} | {value} |" for what, value in rows)


def story(burst: Burst) -> str:
    """The decision log, as `penstock scale history` has it."""
    lines = []
    for d in burst.decisions:
        limits = f" [{', '.join(d.limits)}]" if d.limits else ""
        repeated = f" (x{d.repeated + 1})" if d.repeated else ""
        moved = f"{d.action:<7} {d.from_workers} -> {d.to_workers}"
        lines.append(f"{d.at_ms / 1000 - burst.began:6.1f} s  {moved}  {d.reason}{limits}{repeated}")
    return "\n".join(lines)


def draw(bursts: Sequence[Burst], path: Path) -> None:
    """One column a burst: the line above, the workers and the decisions below."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "burst", "font.size": 8, "svg.fonttype": "none"})
    figure, rows = plt.subplots(2, len(bursts), figsize=(4.4 * len(bursts), 3.6), sharex="col", squeeze=False)
    for column, burst in enumerate(bursts):
        times = [s.at - burst.began for s in burst.samples]
        line, fleet = rows[0][column], rows[1][column]
        line.set_title(burst.where.partition(" (")[0])
        line.fill_between(times, [s.waiting for s in burst.samples], step="post", color="#9db8d2", label="waiting")
        line.step(times, [s.running for s in burst.samples], where="post", color="#c0504d", lw=1, label="running")
        fleet.step(times, [s.desired for s in burst.samples], where="post", color="#444444", lw=1, ls="--", label="desired")
        fleet.step(times, [s.ready for s in burst.samples], where="post", color="#2e7d4f", lw=1.6, label="ready")
        for action, mark, colour in ((Action.UP, "^", "#2e7d4f"), (Action.DOWN, "v", "#c0504d"), (Action.HOLD, "|", "#888888")):
            at = [d.at_ms / 1000 - burst.began for d in burst.decisions if d.action is action]
            fleet.plot(at, [-0.45] * len(at), mark, color=colour, ms=5, ls="", label=str(action.value))
        fleet.set_ylim(-0.9, max(s.desired for s in burst.samples) + 0.5)
        fleet.set_xlabel("seconds from the first request")
        if not column:
            line.set_ylabel("requests")
            fleet.set_ylabel("workers, decisions")
            line.legend(frameon=False)
            fleet.legend(frameon=False, ncols=2, fontsize=6, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})


async def _main(args: argparse.Namespace) -> int:
    bursts = []
    for where in args.where:
        async with local() if where == "local" else agents() as stand:
            burst = await play(stand, args.requests)
        bursts.append(burst)
        print(f"{table(burst)}\n\n{story(burst)}\n", flush=True)
    if args.picture:
        draw(bursts, args.picture)
    bad = [b for b in bursts if b.endings["completed"] < b.requests or b.endings["charged attempts"] or b.leftovers]
    return 1 if bad else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A burst onto no worker at all.")
    parser.add_argument("where", nargs="+", choices=("local", "agents"))
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--picture", type=Path)
    raise SystemExit(asyncio.run(_main(parser.parse_args())))
