"""A house of real processes for system tests: one server, gateways and workers as a person would start them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.servers import running

PATIENCE_S = 90.0


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition; an AssertionError names what never came."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain for: {what}"
        time.sleep(0.05)


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no memory figure")


@dataclass
class Role:
    """One process."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self, patience_s: float = PATIENCE_S) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience_s)


@dataclass
class House:
    """A server and the roles started on it; every one is killed at the end."""

    redis_url: str
    server_pid: int
    folder: Path
    roles: list[Role] = field(default_factory=list)

    def gateway(self, *flags: str, **environment: str) -> Role:
        port = free_port()
        role = self._start(f"gateway-{port}", ["gateway", "--port", str(port), *flags], environment)
        role.url = f"http://127.0.0.1:{port}"
        until(lambda: self._answers(role, "/readyz"), f"{role.name} to be ready", 30)
        return role

    def worker(self, *flags: str, **environment: str) -> Role:
        return self._start(f"worker-{len(self.roles)}", ["worker", *flags], environment)

    def get(self, gateway: Role, path: str) -> Any:
        with urllib.request.urlopen(gateway.url + path, timeout=10) as reply:
            return json.load(reply)

    def until_ready(self, gateway: Role, workers: int) -> None:
        def ready() -> bool:
            for role in self.roles:
                assert role.process.poll() is None, f"{role.name} ended:\n{role.log.read_text()[-3000:]}"
            return sum(w["state"] == "ready" for w in self.get(gateway, "/v1/workers")["data"]) >= workers

        until(ready, f"{workers} ready workers")

    def _answers(self, role: Role, path: str) -> bool:
        assert role.process.poll() is None, f"{role.name} ended:\n{role.log.read_text()[-3000:]}"
        try:
            with urllib.request.urlopen(role.url + path, timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> Role:
        log = self.folder / f"{name}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "penstock", *command, "--redis", self.redis_url],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **environment},
                cwd=self.folder,
            )
        role = Role(name, process, log)
        self.roles.append(role)
        return role


@contextlib.contextmanager
def house(server: str = "valkey") -> Iterator[House]:
    """An empty house on a fresh server."""
    with running(server) as found, house_on(found.url, found.process.pid) as home:
        yield home


@contextlib.contextmanager
def house_on(url: str, server_pid: int = 0) -> Iterator[House]:
    """An empty house on a server that stands already."""
    with tempfile.TemporaryDirectory(prefix="penstock-house-") as folder:
        home = House(url, server_pid, Path(folder))
        try:
            yield home
        finally:
            for role in home.roles:
                if role.process.poll() is None:
                    role.process.kill()
            for role in home.roles:
                role.process.wait()
