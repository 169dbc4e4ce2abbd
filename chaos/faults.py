"""The faults, as a table: name -> how often, on whom, for how long, what is done and how it is undone.

A new fault is one function and one row. Never here: when (nemesis.py), whether it did harm (checker.py).
"""

import asyncio
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from chaos.house import Role
from chaos.pool import POOL, bounds_of
from chaos.scene import AWAY, Scene
from chaos.servers import Sentinel, ServerProcess
from dispatch.redis_client import connect
from dispatch.scale_store import ScaleStore

SINGLE, SENTINEL = "single", "sentinel"
_BOTH = frozenset({SINGLE, SENTINEL})
Undo = Callable[[], Awaitable[None]] | None
Do = Callable[[Scene, str, float], Awaitable[Undo]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One row. `on`: worker, gateway, engine, role, server, autoscaler, leader, agent, bounds or nobody; `for_s`: shortest and
    longest; `lease`: in leases."""

    do: Do
    weight: int
    on: str = ""
    for_s: tuple[float, float] = (0.0, 0.0)
    in_leases: bool = False
    topologies: frozenset[str] = _BOTH
    alone: bool = False
    """Not together with another fault of the server."""
    least_s: float = 0.0
    """Only in runs of at least that length."""
    scaled: bool = False
    """Only in runs with autoscalers and agents."""


def _role(scene: Scene, target: str) -> Role:
    return scene.house.role(target)


async def kill(scene: Scene, target: str, for_s: float) -> Undo:
    """SIGKILL; the supervisor starts it again."""
    role = _role(scene, target)
    workers = [] if role.url else await scene.ids_or_none(role)
    role.signal(signal.SIGKILL)
    if workers:
        await asyncio.sleep(0.02)  # what it had sent arrives
        await scene.note_victims(role, workers, "SIGKILL")
    return None


async def kill_engine(scene: Scene, target: str, for_s: float) -> Undo:
    """SIGKILL of a worker's engine process."""

    role = _role(scene, target)
    children = role.children()
    if children:
        workers = await scene.ids_or_none(role)
        with suppress(ProcessLookupError):
            os.kill(children[-1], signal.SIGKILL)
        await scene.note_victims(role, workers, "engine")
    return None


async def drain(scene: Scene, target: str, for_s: float) -> Undo:
    """SIGTERM; the supervisor starts it again when it has drained."""
    role = _role(scene, target)
    workers = [] if role.url else await scene.ids_or_none(role)
    if workers:
        await scene.note_victims(role, workers, "SIGTERM")
    role.signal(signal.SIGTERM)
    return None


async def roll(scene: Scene, target: str, for_s: float) -> Undo:
    """SIGTERM of every process, one after another."""
    for role in list(scene.house.roles.values()):
        await drain(scene, role.name, 0)
        await asyncio.sleep(1.0)
    return None


async def stop(scene: Scene, target: str, for_s: float) -> Undo:
    """SIGSTOP, and SIGCONT after a while: a worker that comes back from the dead."""
    role = _role(scene, target)
    workers = [] if role.url else await scene.ids_or_none(role)
    pid = role.signal(signal.SIGSTOP)
    children = role.children()
    for child in children:
        _signal_pid(child, signal.SIGSTOP)
    if workers:
        await asyncio.sleep(0.02)
        await scene.note_victims(role, workers, "SIGSTOP")

    async def undo() -> None:
        for each in (*children, pid):
            _signal_pid(each, signal.SIGCONT)

    return undo


async def server_stop(scene: Scene, target: str, for_s: float) -> Undo:
    """SIGSTOP of the master."""
    process = await scene.server.master()
    process.signal(signal.SIGSTOP)

    async def undo() -> None:
        process.signal(signal.SIGCONT)

    return undo


async def server_kill(scene: Scene, target: str, for_s: float) -> Undo:
    """kill -9 of the master; it comes back on its append-only file."""
    process = await scene.server.master()
    await process.kill()
    return process.start


async def failover(scene: Scene, target: str, for_s: float) -> Undo:
    """An operator moves the master."""
    if isinstance(scene.server, Sentinel):
        await scene.server.failover()
    return None


async def replica_kill(scene: Scene, target: str, for_s: float) -> Undo:
    """kill -9 of a server that is not the master."""
    master = await scene.server.master()
    others = [p for n, p in scene.server.processes.items() if n.startswith("server") and p is not master]
    await others[0].kill()
    return others[0].start


async def script_flush(scene: Scene, target: str, for_s: float) -> Undo:
    """The server forgets every script."""
    redis = await scene.redis()
    await redis.execute_command("FUNCTION", "FLUSH")
    await redis.execute_command("SCRIPT", "FLUSH")
    return None


async def client_kill(scene: Scene, target: str, for_s: float) -> Undo:
    """The server closes every connection."""
    client: Any = connect(f"redis://127.0.0.1:{(await scene.server.master()).port}/0", max_connections=1)
    try:
        await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    finally:
        await client.aclose()
    return None


async def memory_low(scene: Scene, target: str, for_s: float) -> Undo:
    """The server is over its memory limit."""
    master = await scene.server.master()
    redis = await scene.redis()
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", int(used * 0.9))

    async def undo() -> None:
        await _until_set(master, "maxmemory", "0")

    return undo


async def disk_full(scene: Scene, target: str, for_s: float) -> Undo:
    """The append-only file cannot grow: writes to it fail as on a full disk."""
    master = await scene.server.master()
    pid = master.process.pid if master.process is not None else 0
    files = [*master.folder.glob("appendonlydir/*.incr.aof"), *master.folder.glob("appendonly.aof")]
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (max(f.stat().st_size for f in files), hard))

    async def undo() -> None:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))

    return undo


async def stop_fleet(scene: Scene, target: str, for_s: float) -> Undo:
    """SIGSTOP of every worker at once."""
    undoings = [await stop(scene, role.name, for_s) for role in scene.house.workers if role.pid]

    async def undo() -> None:
        for each in undoings:
            if each is not None:
                await each()

    return undo


async def stop_one(scene: Scene, target: str, for_s: float) -> Undo:
    """SIGSTOP of one process, not of its children: an agent's are its workers."""
    pid = _role(scene, target).signal(signal.SIGSTOP)

    async def undo() -> None:
        _signal_pid(pid, signal.SIGCONT)

    return undo


async def kill_host(scene: Scene, target: str, for_s: float) -> Undo:
    """SIGKILL of an agent and all its workers at once."""
    _role(scene, target).signal(signal.SIGKILL)
    for role in _on_host(scene, target):
        await kill(scene, role.name, for_s)
    return None


async def stop_host(scene: Scene, target: str, for_s: float) -> Undo:
    """SIGSTOP of an agent and all its workers: for a short or a long while it is gone."""
    undoings = [await stop_one(scene, target, for_s), *[await stop(scene, r.name, for_s) for r in _on_host(scene, target)]]

    async def undo() -> None:
        for each in undoings:
            if each is not None:
                await each()

    return undo


async def rebound(scene: Scene, target: str, for_s: float) -> Undo:
    """An operator sets other bounds of the pool."""
    await ScaleStore(await scene.redis()).change_override(POOL, lambda _: bounds_of(target, scene.house))
    return None


def _on_host(scene: Scene, target: str) -> list[Role]:
    return [role for role in scene.house.pool.values() if role.host == target and role.pid]


async def cut(scene: Scene, target: str, for_s: float) -> Undo:
    """Every connection of one role breaks."""
    _role(scene, target).road.cut()
    return None


def _proxied(**how: Any) -> Do:
    async def do(scene: Scene, target: str, for_s: float) -> Undo:
        road = _role(scene, target).road
        road.misbehave(**how)

        async def undo() -> None:
            road.heal()

        return undo

    return do


async def _until_set(server: ServerProcess, name: str, value: str) -> None:
    client: Any = connect(f"redis://127.0.0.1:{server.port}/0", max_connections=1)
    try:
        async with asyncio.timeout(30):
            while True:
                with suppress(*AWAY):
                    await client.config_set(name, value)
                    return
                await asyncio.sleep(0.2)
    finally:
        await client.aclose()


def _signal_pid(pid: int, number: int) -> None:

    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


_ONE = frozenset({SINGLE})
_TWO = frozenset({SENTINEL})
FAULTS: Mapping[str, Fault] = {
    "kill-worker": Fault(kill, 12, "worker"),
    "kill-gateway": Fault(kill, 5, "gateway"),
    "kill-engine": Fault(kill_engine, 4, "engine"),
    "drain-worker": Fault(drain, 6, "worker"),
    "drain-gateway": Fault(drain, 3, "gateway"),
    "rolling-restart": Fault(roll, 1),
    "stop-worker": Fault(stop, 8, "worker", (1.5, 1.6), in_leases=True),
    "stop-fleet": Fault(stop_fleet, 1, "", (1.5, 1.6), in_leases=True),
    "stop-gateway": Fault(stop, 3, "gateway", (0.5, 3.0)),
    "stop-server": Fault(server_stop, 2, "server", (3.0, 3.0), topologies=_ONE, alone=True),
    "kill-server": Fault(server_kill, 2, "server", (0.3, 2.0), topologies=_ONE, alone=True),
    "outage": Fault(server_kill, 1, "server", (30.0, 30.0), topologies=_ONE, alone=True, least_s=150),
    "disk-full": Fault(disk_full, 2, "server", (1.0, 3.0), topologies=_ONE, alone=True),
    "kill-master": Fault(server_kill, 3, "server", (6.0, 9.0), topologies=_TWO, alone=True),
    "stop-master": Fault(server_stop, 2, "server", (5.0, 6.0), topologies=_TWO, alone=True),
    "failover": Fault(failover, 3, "server", (6.0, 6.0), topologies=_TWO, alone=True),
    "kill-replica": Fault(replica_kill, 2, "server", (1.0, 3.0), topologies=_TWO, alone=True),
    "script-flush": Fault(script_flush, 4, "server"),
    "client-kill": Fault(client_kill, 3, "server"),
    "memory-limit": Fault(memory_low, 2, "server", (1.0, 2.5), alone=True),
    "cut": Fault(cut, 5, "role"),
    "drop-replies": Fault(_proxied(drop_reply=0.2), 8, "role", (2.0, 4.0)),
    "delay": Fault(_proxied(delay_s=0.2), 3, "role", (2.0, 4.0)),
    "partition": Fault(_proxied(silent=True), 4, "role", (1.0, 4.0)),
    "one-way": Fault(_proxied(mute=True), 4, "role", (1.0, 3.0)),
    "refuse": Fault(_proxied(refuse=True), 2, "role", (1.0, 3.0)),
    "kill-leader": Fault(kill, 8, "leader", scaled=True),
    "stop-leader": Fault(stop_one, 6, "leader", (1.0, 5.0), scaled=True),
    "kill-autoscaler": Fault(kill, 2, "autoscaler", scaled=True),
    "drain-autoscaler": Fault(drain, 2, "autoscaler", scaled=True),
    "kill-agent": Fault(kill, 8, "agent", scaled=True),
    "stop-agent": Fault(stop_one, 4, "agent", (2.0, 14.0), scaled=True),
    "drain-agent": Fault(drain, 2, "agent", scaled=True),
    "kill-host": Fault(kill_host, 2, "agent", scaled=True),
    "stop-host": Fault(stop_host, 2, "agent", (3.0, 16.0), scaled=True),
    "bounds": Fault(rebound, 8, "bounds", scaled=True),
}
