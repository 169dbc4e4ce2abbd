"""Who is measured: processes on a server of their own, and a client that is told of rounds. Never here: figures, reports."""

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.ports import free_port
from tests.servers import binaries

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "bench" / "peers"
_START_S = 60.0
_PROMPT = "w" * 400


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment: arq wants an older client than the others."""
    return PEERS / (".venv-arq" if peer == "arq" else ".venv") / "bin" / "python"


def install_peers() -> None:
    """Make the peers' environments where they are not."""
    for name, wants in ((".venv", "requirements.txt"), (".venv-arq", "requirements-arq.txt")):
        if not (PEERS / name / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(PEERS / name)], check=True)
            pip = [str(PEERS / name / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "-r"]
            subprocess.run([*pip, str(PEERS / wants)], check=True)


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

    def role(self, *command: str, **environment: str) -> None:
        """A process that says nothing to us."""
        with (self.folder / f"{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment},
            )  # fmt: skip
        self.processes.append(process)

    def client(self, *command: str, **environment: str) -> "Client":
        return Client(self.start(*command, **environment), self)

    def http(self, port: str, path: str, body: dict[str, object], *headers: str) -> "Client":
        url = f"http://127.0.0.1:{port}{path}"
        return self.client(sys.executable, "-m", "bench.dispatch.calling", url, json.dumps(body), *headers)

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

    def cpu_s(self) -> list[float]:
        """CPU of the server and of each process so far, in the order they were started."""
        assert self.server is not None
        return [_cpu_s(each.pid) for each in (self.server, *self.processes)]

    def logs(self) -> str:
        return "\n".join(p.read_text()[-1500:] for p in sorted(self.folder.glob("*.log")))


def _cpu_s(pid: int) -> float:
    """Of a process and those it started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(_cpu_s, _children(pid)))


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
            yield found
        finally:
            for each in found.processes:
                _kill(each.pid)
            for each in found.processes:
                each.wait()
            process.kill()
            process.wait()


def floor(s: Stand) -> Client:
    s.role(sys.executable, "-m", "bench.dispatch.floor", "worker", s.redis_url)
    return s.client(sys.executable, "-m", "bench.dispatch.floor", "client", s.redis_url)


def direct(s: Stand) -> Client:
    s.role(sys.executable, "-m", "bench.dispatch.direct", "worker", s.redis_url)
    return s.client(sys.executable, "-m", "bench.dispatch.direct", "client", s.redis_url)


def peer(s: Stand, name: str) -> Client:
    run = [str(python_of(name)), str(PEERS / "run.py"), name]
    s.role(*run, "worker", PEER_REDIS=s.redis_url)
    return s.client(*run, "client", PEER_REDIS=s.redis_url)


_BODY: dict[str, object] = {"model": "demo", "prompt": _PROMPT, "max_tokens": 1}


def bare(s: Stand) -> Client:
    port = str(free_port())
    s.role(sys.executable, "-m", "bench.dispatch.bare", port)
    s.until_answers(f"http://127.0.0.1:{port}/run")
    return s.http(port, "/run", _BODY)


def peer_http(s: Stand, name: str) -> Client:
    run, port = [str(python_of(name)), str(PEERS / "run.py"), name], str(free_port())
    s.role(*run, "worker", PEER_REDIS=s.redis_url)
    s.role(*run, "app", port, PEER_REDIS=s.redis_url)
    s.until_answers(f"http://127.0.0.1:{port}/run")
    return s.http(port, "/run", _BODY)


def _house(s: Stand, gateways: int) -> str:
    """Gateways and an instant worker. Returns the ports."""
    ports: Sequence[str] = [str(free_port()) for _ in range(gateways)]
    penstock = [sys.executable, "-m", "penstock"]
    for port in ports:
        s.role(*penstock, "gateway", "--port", port, "--redis", s.redis_url)
    s.role(
        *penstock, "worker", "--engine", "sim", "--model", "demo", "--redis", s.redis_url,
        PENSTOCK_WORKER__SIM_SPEED="inf", PENSTOCK_WORKER__SLOTS="1024",
    )  # fmt: skip
    for port in ports:
        s.until_answers(f"http://127.0.0.1:{port}/v1/models/demo")
    deadline = time.monotonic() + _START_S
    while b'"ready"' not in urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/v1/workers", timeout=5).read():
        assert time.monotonic() < deadline, s.logs()
        time.sleep(0.1)
    return ",".join(ports)


def http_wait(s: Stand, gateways: int) -> Client:
    return s.http(_house(s, gateways), "/v1/requests", _BODY, "Prefer: wait=30")


def http_chat(s: Stand, gateways: int) -> Client:
    body = {"model": "demo", "messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 1}
    return s.http(_house(s, gateways), "/v1/chat/completions", body)
