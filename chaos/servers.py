"""The server under a chaos run: one on an append-only file, or a master with two replicas and three sentinels.

Never here: faults (faults.py), roles (house.py).
"""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dispatch.processes import with_parent
from dispatch.redis_client import connect
from penstock.server import Binary, candidates
from tests.ports import free_port

_PATIENCE_S = 15.0
SERVICE = "penstock"
_ROOT = str(Path(__file__).resolve().parent.parent)
_LEASH = (
    "import os, signal, sys; from dispatch.processes import die_with_parent; "
    "die_with_parent(signal.SIGKILL); os.execvp(sys.argv[1], sys.argv[1:])"
)
"""A harness that is killed must leave no server behind; a stopped one obeys SIGKILL alone."""


def find(name: str) -> Binary:
    """The server binary of that product ("redis", "valkey"); any for ""."""
    found = [b for b in candidates(os.environ) if b.suitable and (not name or b.product.lower() == name)]
    if not found:
        raise SystemExit(f"chaos: there is no suitable {name or 'redis or valkey'} server on this machine")
    return found[0]


@dataclass
class ServerProcess:
    """One server process that can be killed, stopped and started again on its data."""

    binary: Binary
    folder: Path
    port: int
    config: tuple[str, ...] = ()
    sentinel: bool = False
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # A write beyond the limit of a "full" disk must fail, not kill.
        command = [sys.executable, "-c", _LEASH, "env", "--ignore-signal=XFSZ", str(self.binary.path)]
        if self.sentinel:
            command += [str(self.folder / "sentinel.conf"), "--sentinel"]
        else:
            command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *self.config]
        with (self.folder / "server.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=with_parent(
                    {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))}
                ),
            )
        client: Any = connect(f"redis://127.0.0.1:{self.port}/0", max_connections=1)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while True:
                    try:
                        await client.ping()
                        return
                    except Exception:
                        if self.process.returncode is not None:
                            raise
                        await asyncio.sleep(0.05)
        finally:
            await client.aclose()

    def signal(self, number: int) -> None:
        """A signal, if it lives."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()


class Server(Protocol):
    """What a run needs of its server, whatever its topology."""

    processes: dict[str, ServerProcess]

    async def start(self) -> None:
        """Start all of it."""

    def url(self) -> str:
        """What the roles are given, unless a proxy stands between."""

    async def master(self) -> ServerProcess:
        """Whoever takes writes now."""

    async def close(self) -> None:
        """Kill all of it."""


@dataclass
class Single:
    """One server on an append-only file."""

    binary: Binary
    folder: Path
    processes: dict[str, ServerProcess] = field(default_factory=dict)

    async def start(self) -> None:
        config = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction")
        self.processes["server"] = ServerProcess(self.binary, self.folder / "server", free_port(), config)
        await self.processes["server"].start()

    def url(self) -> str:
        return f"redis://127.0.0.1:{self.processes['server'].port}/0"

    async def master(self) -> ServerProcess:
        return self.processes["server"]

    async def close(self) -> None:
        await asyncio.gather(*(p.kill() for p in self.processes.values()))


@dataclass
class Sentinel:
    """A master, two replicas, three sentinels."""

    binary: Binary
    folder: Path
    down_after_ms: int = 1_500
    processes: dict[str, ServerProcess] = field(default_factory=dict)

    async def start(self) -> None:
        ports = [free_port() for _ in range(6)]
        config: tuple[str, ...] = ("--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction")
        config += ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "2", "--repl-diskless-sync-delay", "0")
        for n, port in enumerate(ports[:3]):
            follow = () if n == 0 else ("--replicaof", "127.0.0.1", str(ports[0]))
            name = f"server-{n}"
            self.processes[name] = ServerProcess(self.binary, self.folder / name, port, (*config, *follow))
            await self.processes[name].start()
        for n, port in enumerate(ports[3:]):
            name = f"sentinel-{n}"
            folder = self.folder / name
            folder.mkdir(parents=True)
            (folder / "sentinel.conf").write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {ports[0]} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} {self.down_after_ms}\n"
                f"sentinel failover-timeout {SERVICE} 6000\nsentinel parallel-syncs {SERVICE} 2\n"
            )
            self.processes[name] = ServerProcess(self.binary, folder, port, sentinel=True)
            await self.processes[name].start()
        await self._until_agreed()

    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{p.port}" for name, p in self.processes.items() if name.startswith("sentinel"))
        return f"redis+sentinel://{hosts}/{SERVICE}"

    async def master(self) -> ServerProcess:
        port = await self._master_port()
        return next(p for p in self.processes.values() if p.port == port)

    async def failover(self) -> None:
        """Ask a sentinel to move the master, as an operator would."""
        client: Any = connect(f"redis://127.0.0.1:{self.processes['sentinel-0'].port}/0", max_connections=1)
        try:
            await client.execute_command("SENTINEL", "FAILOVER", SERVICE)
        finally:
            await client.aclose()

    async def close(self) -> None:
        await asyncio.gather(*(p.kill() for p in self.processes.values()))

    async def _master_port(self) -> int:
        client: Any = connect(f"redis://127.0.0.1:{self.processes['sentinel-0'].port}/0", max_connections=1)
        try:
            _, port = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            return int(port)
        finally:
            await client.aclose()

    async def _until_agreed(self) -> None:
        client: Any = connect(f"redis://127.0.0.1:{self.processes['sentinel-0'].port}/0", max_connections=1)
        try:
            async with asyncio.timeout(30):
                while True:
                    replicas = await client.execute_command("SENTINEL", "REPLICAS", SERVICE)
                    sentinels = await client.execute_command("SENTINEL", "SENTINELS", SERVICE)
                    if len(replicas) == 2 and len(sentinels) == 2:
                        return
                    await asyncio.sleep(0.2)
        finally:
            await client.aclose()
