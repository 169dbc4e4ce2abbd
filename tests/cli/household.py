"""A real `penstock up` for tests: started, read, asked, ended; and every process it left behind, by a mark in the environment."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PENSTOCK = str(Path(sys.executable).parent / "penstock")
_MARK = "TEST_HOUSEHOLD"


class Up:
    """One `penstock up`, and the client verbs against it."""

    def __init__(self, home: Path, *arguments: str, **variables: str) -> None:
        self.home = home
        self.mark = uuid.uuid4().hex
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        self.environment = {**kept, "HOME": str(home), "TMPDIR": str(home), _MARK: self.mark, **variables}
        self.process = subprocess.Popen(
            [PENSTOCK, "up", "--engine", "sim", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            cwd=home,
            # As from a terminal: a Ctrl-C goes to its whole group, and not to the tests.
            start_new_session=True,
        )
        self._known: set[tuple[int, int]] = set()
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self._lines)

    @property
    def url(self) -> str:
        found = re.search(r"gateway +(http://\S+)", self.output)
        assert found, self.output
        return found[1]

    def until_said(self, text: str, times: int = 1, timeout_s: float = 30) -> None:
        self.until(lambda: self.output.count(text) >= times, f"`up` to say {text!r}", timeout_s)

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 20) -> None:
        until(condition, lambda: f"{what}; it said:\n{self.output}{self.logs()}", timeout_s)

    def start_verb(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PENSTOCK, *arguments, "--server", self.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.home,
            # Whoever runs the tests in the background of a shell ignores SIGINT, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def verb(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start_verb(*arguments)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def json(self, *arguments: str) -> Any:
        done = self.verb(*arguments, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def end(self, signal_number: int, timeout_s: float = 30) -> int:
        self.living()
        self.process.send_signal(signal_number)
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def living(self) -> dict[int, str]:
        """Every process of this household that lives, by pid: its command line."""
        processes = {pid: stat for pid, stat in ((p, _stat(p)) for p in _pids()) if stat is not None and stat.state != "Z"}
        for pid, stat in processes.items():
            if _is_marked(pid, self.mark) or processes.get(stat.parent, stat).identity in self._known:
                # Remembered, as a Redis overwrites its environment, and an orphan's parent is another one.
                self._known.add(stat.identity)
        return {pid: _command(pid) for pid, stat in processes.items() if stat.identity in self._known}

    def until_nothing_lives(self, timeout_s: float = 10) -> None:
        until(lambda: not self.living(), lambda: f"all to be gone; still there: {self.living()}", timeout_s)

    def logs(self) -> str:
        return "".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in self.home.rglob("*.log"))

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.append(line)
        self.process.stdout.close()


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    identity: tuple[int, int]


def _pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _stat(pid: int) -> _Stat | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return _Stat(fields[0], int(fields[1]), (pid, int(fields[19])))


def _is_marked(pid: int, mark: str) -> bool:
    try:
        return f"{_MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def until(condition: Callable[[], object], what: Callable[[], str], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what()}"
        time.sleep(0.02)


@contextlib.contextmanager
def up(home: Path, *arguments: str, ready: bool = True, **variables: str) -> Iterator[Up]:
    """Ready workers included, unless `ready` is false; nothing of it is left afterwards."""
    household = Up(home, *arguments, **variables)
    try:
        if ready:
            household.until(
                lambda: "is ready" in household.output or household.process.poll() is not None, "a ready worker", timeout_s=40
            )
            assert household.process.poll() is None, household.output + household.logs()
        yield household
    finally:
        for pid in [household.process.pid, *household.living()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        household.process.wait()
        household._reader.join(5)
