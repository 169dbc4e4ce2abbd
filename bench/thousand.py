"""What many parked workers cost Redis: its process's CPU with 1,000 that beat each second, idle and at rising rates of requests.

`python -m bench.thousand [--workers 1000] [--rates 0,10,100,1000] [--seconds 15] [--drivers 2] [--server redis]`. The same is
measured with one worker. A request: enqueue, grant, inbox, begin, one append, finish. CPU is the server's own (INFO cpu).
"""

import argparse
import asyncio
import multiprocessing as mp
import time
from multiprocessing.connection import Connection
from typing import Any

import redis
import uvloop

from bench.clients import Crowd
from penstock.simulator.report import quantile
from tests.servers import binaries, running


def drive(url: str, names: list[str], pipe: Connection) -> None:
    """A process: some of the workers, and its part of the requests."""
    uvloop.run(_drive(url, names, pipe))


async def _drive(url: str, names: list[str], pipe: Connection) -> None:
    crowd = Crowd(url, names)
    await crowd.start()
    pipe.send("ready")
    loop = asyncio.get_running_loop()
    while (order := await loop.run_in_executor(None, pipe.recv)) is not None:
        rate, seconds = order
        crowd.spans.clear()
        before, used = crowd.finished, time.process_time()
        await _submit_for(crowd, rate, seconds)
        pipe.send((crowd.finished - before, list(crowd.spans), time.process_time() - used))


async def _submit_for(crowd: Crowd, rate: float, seconds: float) -> None:
    """At a steady pace, whatever becomes of them."""
    started = time.monotonic()
    tasks = []
    for n in range(int(rate * seconds)):
        if (wait_s := started + n / rate - time.monotonic()) > 0.0005:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(crowd.submit(to_its_end=False)))
    await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))
    await asyncio.gather(*tasks)


def measure(server: str, workers: int, rates: list[float], seconds: float, drivers: int) -> list[tuple[float, ...]]:
    """Each rate: requests/s that were done, CPU of the server (share of a core), the part in scripts, p50 and p99 of submit to
    begin, the drivers' CPU."""
    rows: list[tuple[float, ...]] = []
    with running(server) as found, redis.Redis.from_url(found.url) as look:
        pipes, processes = [], []
        for n in range(drivers):
            ours, theirs = mp.Pipe()
            names = [f"w-{i:04d}" for i in range(n, workers, drivers)]
            process = mp.get_context("fork").Process(target=drive, args=(found.url, names, theirs), daemon=True)
            process.start()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            assert pipe.recv() == "ready"
        time.sleep(2)
        for rate in rates:
            before, since = _used_s(look), time.monotonic()
            for pipe in pipes:
                pipe.send((rate / drivers, seconds))
            told: list[Any] = [pipe.recv() for pipe in pipes]
            span_s = time.monotonic() - since
            spans = sorted(s for _, part, _ in told for s in part) or [0.0]
            cpu_s, in_scripts_s = (now - then for now, then in zip(_used_s(look), before, strict=True))
            row = (
                sum(done for done, _, _ in told) / span_s,
                cpu_s / span_s,
                in_scripts_s / span_s,
                quantile(spans, 0.5),
                quantile(spans, 0.99),
                sum(used for _, _, used in told) / span_s,
            )
            rows.append(row)
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(10)
            process.kill()
    return rows


def _used_s(look: "redis.Redis") -> tuple[float, float]:
    """CPU of the server's process, and the part of it that went by in scripts."""
    cpu: Any = look.info("cpu")
    commands: Any = look.info("commandstats")
    return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"]), commands["cmdstat_fcall"]["usec"] / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rates", default="0,10,100,1000")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--drivers", type=int, default=2)
    parser.add_argument("--server", default="", help="redis or valkey; without one, each at hand")
    args = parser.parse_args()
    rates = [float(rate) for rate in args.rates.split(",")]
    head = "CPU a request | against 1 worker | in scripts | against 1 worker | to begin p50 | p99"
    print(f"| server | workers | asked/s | done/s | server CPU | {head} | drivers' CPU |")
    print("|---" * 12 + "|")
    for server in [args.server] if args.server else binaries():
        first: dict[float, tuple[float, float]] = {}
        for workers in (1, args.workers):
            rows = measure(server, workers, rates, args.seconds, args.drivers)
            for rate, (done, cpu, scripts, p50, p99, used) in zip(rates, rows, strict=True):
                if rate:
                    costs = (cpu - rows[0][1]) / done, (scripts - rows[0][2]) / done
                    against = first.setdefault(rate, costs)
                    cells = " | ".join(f"{c * 1e6:.0f} us | {c / a:.2f}" for c, a in zip(costs, against, strict=True))
                    cells += f" | {p50 * 1000:.2f} ms | {p99 * 1000:.2f} ms"
                else:
                    cells = " | | | | |"
                print(f"| {server} | {workers} | {rate:g} | {done:.0f} | {cpu:.1%} | {cells} | {used:.0%} |", flush=True)


if __name__ == "__main__":
    main()
