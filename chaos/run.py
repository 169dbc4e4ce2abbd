"""One run: set the house up, take the references, load and strike it, heal it, wait until all is settled, write it down.

Never here: what the parts do.
"""

import asyncio
import contextlib
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2 as httpx

from chaos.asks import DEMO, SIM, Ask, demo_asks
from chaos.clients import Load
from chaos.faults import SINGLE
from chaos.forger import Forger
from chaos.history import Recorder
from chaos.house import House
from chaos.nemesis import Nemesis, plan
from chaos.observer import Observer
from chaos.scaled import Scaled
from chaos.scene import AWAY, Scene
from chaos.servers import Sentinel, Server, Single, find
from dispatch.fleet import Fleet
from dispatch.rules import QueueRules
from dispatch.settings import WorkerSettings
from tests.ports import free_port

SOME, ALL, NONE = "some", "all", "none"
_READY_S = 90.0
_END_S = 30.0
_SKEWS_S = (0, 3600, -3600, 30, -30)


@dataclass(frozen=True, slots=True)
class Config:
    """What a run is made of."""

    seed: int
    seconds: float
    topology: str = SINGLE
    server: str = ""
    sim_workers: int = 3
    transformers_workers: int = 2
    clients: int = 20
    gap_s: float = 2.2
    lease_s: float = 2.0
    only: tuple[str, ...] = ()
    settle_s: float = 90.0
    poison: float = 0.01
    """The share of prompts that do something to their engine."""
    launched: str = SOME
    """Which workers a launcher tells of: some (each second one, by seed), all or none."""
    scaled: bool = False
    """Autoscalers, agents and a pool of theirs besides."""


def environment(config: Config) -> dict[str, str]:
    """What every role is told: short leases, many attempts, quick drains."""
    return {
        "PENSTOCK_QUEUE__LEASE_S": f"{config.lease_s:g}",
        "PENSTOCK_QUEUE__MAX_ATTEMPTS": "10",
        "PENSTOCK_QUEUE__RETENTION_S": "7200",
        "PENSTOCK_WORKER__HEARTBEAT_S": "0.5",
        "PENSTOCK_WORKER__DRAIN_TIMEOUT_S": "2",
        "PENSTOCK_GATEWAY__DRAIN_TIMEOUT_S": "1",
        "PENSTOCK_GATEWAY__PING_S": "2",
        "PENSTOCK_LOG__FORMAT": "json",
        "OMP_NUM_THREADS": "1",
        "PENSTOCK_REDIS__DURABILITY": "aof" if config.topology == SINGLE else "replicated",
    }


async def run(config: Config, folder: Path, history: Path) -> None:
    """Do it all, and leave the history behind."""
    binary = find(config.server)
    server: Server = Single(binary, folder) if config.topology == SINGLE else Sentinel(binary, folder)
    has_sim_faults = "sim_faults" in WorkerSettings.model_fields
    with Recorder(history) as record:
        try:
            await server.start()
        except BaseException:
            await server.close()
            raise
        rules = QueueRules(lease_ms=int(config.lease_s * 1000))
        house = House(folder, server, rules, record, config.seed)
        models = [SIM, DEMO] if config.transformers_workers else [SIM]
        scene = Scene(house, server, record, rules, models, scaled=config.scaled)
        scaled: Scaled | None = None
        try:
            gateways = await _start_roles(config, house, has_sim_faults)
            meta = {
                **asdict(config),
                "server": f"{binary.product} {binary.version}",
                "workers": config.sim_workers + config.transformers_workers,
                "gateways": {r.url: r.name for r in house.gateways},
                "sim_faults": has_sim_faults,
                "launched": [r.name for r in house.workers if r.launched],
                "engine_failures": WorkerSettings.model_fields["engine_failures"].default,
            }
            record("meta", **meta)
            await _until_ready(scene, config)
            if config.scaled:
                scaled = await Scaled.start(scene, environment(config), uuid.uuid4().hex)
                scaled.watch.look()
                await scaled.until_standing(_READY_S)
            demo = demo_asks() if config.transformers_workers else []
            await _take_references(gateways[0], demo, record)
            _say(f"chaos: ready; {config.seconds:g} s of faults")
            await _storm(config, scene, gateways, demo, scaled, poison=config.poison if has_sim_faults else 0.0)
        finally:
            if scaled is not None:
                await scaled.close()
            await house.close()
            await scene.close()
            await server.close()


async def _start_roles(config: Config, house: House, has_sim_faults: bool) -> list[str]:
    shared = environment(config)
    urls = []
    for n in range(2):
        role = await house.gateway(f"gateway-{n}", free_port(), shared)
        urls.append(role.url)
    for n in range(config.sim_workers):
        more = {"CHAOS_CLOCK_SKEW_S": str(_SKEWS_S[n % len(_SKEWS_S)]), "PENSTOCK_WORKER__PROBE_AFTER_S": "2"}
        if has_sim_faults:
            more["PENSTOCK_WORKER__SIM_FAULTS"] = "true"
        flags = ("--model", SIM, "--slots", "8", "--kv-tokens", "500", "--gpu", "A10")
        await house.worker(f"sim-{n}", "sim", flags, {**shared, **more}, launched=_is_launched(config, n))
    for n in range(config.transformers_workers):
        demo = ("--model", "demo", "--device", "cpu", "--slots", "4")
        await house.worker(f"transformers-{n}", "transformers", demo, shared, launched=_is_launched(config, n))
    return urls


def _is_launched(config: Config, n: int) -> bool:
    return config.launched == ALL or (config.launched == SOME and (n + config.seed) % 2 == 0)


async def _until_ready(scene: Scene, config: Config) -> None:
    wanted = config.sim_workers + config.transformers_workers
    give_up_at = time.monotonic() + _READY_S
    async with httpx.AsyncClient() as http:
        while True:
            beats = await Fleet(await scene.redis()).workers()
            ready = sum(beat.state == "ready" for beat in beats)
            answers = 0
            for role in scene.house.gateways:
                with contextlib.suppress(httpx.HTTPError):
                    answers += (await http.get(f"{role.url}/readyz", timeout=2)).status_code == 200
            if ready >= wanted and answers == len(scene.house.gateways):
                return
            if time.monotonic() > give_up_at:
                raise SystemExit(
                    f"chaos: only {ready} of {wanted} workers and {answers} gateways came up within {_READY_S:.0f} s"
                )
            await asyncio.sleep(0.2)


async def _take_references(gateway: str, asks: Sequence[Ask], record: Recorder) -> None:
    """What the engine that cannot be reckoned says when nothing disturbs it, alone."""
    async with httpx.AsyncClient(timeout=90) as http:
        for ask in asks:
            reply = await http.post(f"{gateway}/v1/requests", json=ask.body(), headers={"prefer": "wait=60"})
            reply.raise_for_status()
            result = reply.json()
            record(
                "answer", n="", client="reference", gateway=gateway, status=200, id=result["id"], code="", replayed=False, key=""
            )
            tokens = result["usage"]["completion_tokens"]
            record("reference", ask=ask.key, text=result["text"], tokens=tokens, finish_reason=result["finish_reason"])


async def _storm(
    config: Config, scene: Scene, gateways: Sequence[str], demo: Sequence[Ask], scaled: Scaled | None, *, poison: float
) -> None:
    record = scene.record
    strikes = plan(
        config.seed,
        config.seconds,
        config.topology,
        gap_s=config.gap_s,
        lease_s=config.lease_s,
        only=config.only,
        scaled=config.scaled,
    )
    load = Load(config.clients, config.seed, gateways, record, demo, poison=poison)
    nemesis, observer, forger = Nemesis(scene, strikes), Observer(scene), Forger(scene, config.seed)
    record("phase", what="storm", strikes=len(strikes))
    background = [asyncio.create_task(observer.run()), asyncio.create_task(forger.run())]
    if scaled is not None:
        background += [asyncio.create_task(scaled.watch.run()), asyncio.create_task(scaled.scale.run())]
    load.start()
    ends_at = time.monotonic() + config.seconds
    await nemesis.run()
    await asyncio.sleep(max(0.0, ends_at - time.monotonic()))
    await nemesis.heal()
    _say("chaos: healed; waiting until everything has ended")
    left = await load.stop(config.settle_s)
    settled = await observer.until_settled(config.settle_s)
    if scaled is not None:
        await scaled.until_reached(config.settle_s)
    await observer.until_idle(10)
    await observer.until_probed(15)
    while any(not task.done() for task in background):
        # Once was not always enough: on a busy machine one of them went on.
        for task in background:
            task.cancel()
        await asyncio.wait(background, timeout=1)
    for task, result in zip(background, await asyncio.gather(*background, return_exceptions=True), strict=True):
        if isinstance(result, Exception):
            raise RuntimeError(f"{task.get_coro()} ended before the run did") from result
    record("phase", what="healed", settled=settled, clients_left=left)
    try:
        async with asyncio.timeout(config.settle_s):
            await observer.write_final()
            if scaled is not None:
                await scaled.scale.write_final()
    except AWAY as error:
        record("phase", what="unreadable", why=f"{type(error).__name__}: {error}")
    if scaled is not None:
        await scaled.end(_END_S)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
