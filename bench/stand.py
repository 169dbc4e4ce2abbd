"""Processes to measure: a server and roles on ports of their own, all killed at the end, and what CPU and memory they took.

Never here: what is measured, figures, reports.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.ports import free_port
from tests.servers import binaries

ROOT = Path(__file__).parents[1]
_START_S = 60.0


@dataclass
class Stand:
    """The processes of one contestant; all are killed at the end."""

    redis_url: str = ""
    server: "subprocess.Popen[bytes] | None" = None
    folder: Path = field(default_factory=Path)
    processes: "list[subprocess.Popen[str]]" = field(default_factory=list)

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        with (self.folder / f"{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment},
            )  # fmt: skip
        self.processes.append(process)
        return process

    def role(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """A process that says nothing to us."""
        with (self.folder / f"{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment},
            )  # fmt: skip
        self.processes.append(process)
        return process

    def penstock(self, *verb: str, **environment: str) -> "subprocess.Popen[str]":
        """A role of ours on this stand's server."""
        return self.role(sys.executable, "-m", "penstock", *verb, "--redis", self.redis_url, **environment)

    def client(self, *command: str, **environment: str) -> "Client":
        return Client(self.start(*command, **environment), self)

    def until_answers(self, url: str) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                with urllib.request.urlopen(url, timeout=2):
                    return
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"{url} never answered\n{self.logs()}")
            time.sleep(0.05)

    def until_ready(self, port: str, workers: int = 1) -> None:
        """Wait until the gateway there knows so many ready workers."""
        deadline = time.monotonic() + _START_S
        while urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/workers", timeout=5).read().count(b'"ready"') < workers:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {workers} workers were ever ready\n{self.logs()}")
            time.sleep(0.1)

    def cpu_s(self) -> list[float]:
        """CPU of the server and of each process so far, in the order they were started."""
        assert self.server is not None
        return [cpu_s_of(each.pid) for each in (self.server, *self.processes)]

    def logs(self) -> str:
        return "\n".join(p.read_text()[-1500:] for p in sorted(self.folder.glob("*.log")))


def cpu_s_of(pid: int) -> float:
    """Of a process and those it started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_s_of, _children(pid)))


def _kill(pid: int) -> None:
    """A process and those it started, which do not all die with it."""
    with contextlib.suppress(OSError):
        children = _children(pid)
        os.kill(pid, signal.SIGKILL)
        for child in children:
            _kill(child)


def _children(pid: int) -> list[int]:
    return [int(child) for tasks in Path(f"/proc/{pid}/task").glob("*/children") for child in tasks.read_text().split()]


class Client:
    """A process that runs closed loops."""

    def __init__(self, process: "subprocess.Popen[str]", stand: Stand) -> None:
        self._process = process
        self._stand = stand
        line = self._read()
        while line != "ready\n":
            line = self._read()

    def measure(self, in_flight: int, seconds: float) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{in_flight} {seconds}\n")
        self._process.stdin.flush()
        figures: dict[str, float] = json.loads(self._read())
        return figures

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client ended\n{self._stand.logs()}")
        return line


def product(server: str) -> str:
    """The server's name and version."""
    said = subprocess.run([binaries()[server], "--version"], capture_output=True, text=True, check=True).stdout.split()
    return f"{said[0]} {next(word[2:] for word in said if word.startswith('v='))}"


@contextlib.contextmanager
def stand(server: str) -> Iterator[Stand]:
    """An empty stand with a server on a port of its own."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        port = free_port()
        command = [binaries()[server], "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        found = Stand(f"redis://127.0.0.1:{port}/0", process, Path(folder))
        try:
            _until_listens(port)
            yield found
        finally:
            for each in found.processes:
                _kill(each.pid)
            for each in found.processes:
                each.wait()
            process.kill()
            process.wait()


def _until_listens(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
