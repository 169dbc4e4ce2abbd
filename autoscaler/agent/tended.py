"""One worker in an agent's care, and the circuit that opens when workers of one kind crash again and again.

Never here: processes, orders (tending.py, agent.py).
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaler.agent.processes import Watch
from autoscaler.agent.state import Kept
from autoscaler.launchers.base import Exit, Restarts
from dispatch.configuration import without_settings
from dispatch.errors import PenstockError
from dispatch.scaling import Launch, LaunchReport, LaunchState

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_HINT = "Whoever wrote the orders is no autoscaler of this release."
HALF_OPEN_S = 300.0
"""How long a circuit stays open before one worker is tried again."""


@dataclass(frozen=True, slots=True)
class UnseenExit(Exit):
    """The end of a process that was not our child: how it ended nobody told us."""

    def __str__(self) -> str:
        return f"{self.name} ended while its agent was away or had adopted it; its exit code is not known"


@dataclass(slots=True)
class Tended:
    """What an agent knows of one launch. `due_at` (monotonic): start again, try again, or kill, by its state."""

    launch: Launch
    state: LaunchState = LaunchState.STARTING
    watch: Watch | None = None
    gpu: str = ""
    since_ms: int = 0
    started_at: float = 0.0
    exits: int = 0
    restarts: Restarts = field(default_factory=Restarts)
    due_at: float = 0.0
    trial: bool = False  # started under an open circuit, to see whether its kind lives again
    error: str = ""
    last_words: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple[str, ...]:
        """What it shares with others that would end as it did."""
        return (self.launch.pool, *(f"{name}={value}" for name, value in sorted(self.launch.worker.items())))

    def report(self, host: str) -> LaunchReport:
        """For the autoscaler and people."""
        return LaunchReport(
            id=self.launch.id,
            pool=self.launch.pool,
            state=self.state,
            host=host,
            pid=self.watch.process.pid if self.watch else 0,
            since_ms=self.since_ms,
            exits=self.exits,
            error=self.error,
            last_words=self.last_words,
            worker=self.launch.worker,
            need_bytes=self.launch.need_bytes,
        )

    def kept(self) -> Kept:
        """For the state file."""
        return Kept(
            launch=self.launch,
            process=self.watch.process if self.watch else None,
            gpu=self.gpu,
            since_ms=self.since_ms,
            exits=self.exits,
            failures=self.restarts.failures,
            crash_loop=self.state is LaunchState.CRASH_LOOP,
            stopping=self.state is LaunchState.STOPPING,
            error=self.error,
            last_words=self.last_words,
        )


class Circuits:
    """Which kinds of workers are not started now, since those before them crashed. `half_open_s` later one may try."""

    def __init__(self, half_open_s: float = HALF_OPEN_S) -> None:
        self._half_open_s = half_open_s
        self._open: dict[tuple[str, ...], tuple[float, str]] = {}

    def open(self, kind: tuple[str, ...], why: str, now: float) -> float:
        """From now on; returns when one may try."""
        self._open[kind] = (now + self._half_open_s, why)
        return now + self._half_open_s

    def blocks(self, kind: tuple[str, ...], now: float) -> tuple[float, str] | None:
        """Until when, and why; None: it may start. Whoever gets None of an open circuit is the one that tries: others wait on."""
        if kind not in self._open:
            return None
        until, why = self._open[kind]
        if now < until:
            return until, why
        self._open[kind] = (now + self._half_open_s, why)
        return None

    def healthy(self, kind: tuple[str, ...]) -> None:
        """One lives: all may."""
        self._open.pop(kind, None)

    def __contains__(self, kind: object) -> bool:
        return kind in self._open


def environment_of(around: Mapping[str, str], worker: Mapping[str, str], gpu: str) -> dict[str, str]:
    """A worker's environment: the agent's own without Penstock's settings, those of the worker, its GPU."""
    return {**without_settings(around), **worker, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}


def check(launch: Launch) -> None:
    """Raises PenstockError("bad_setting") for a launch whose words cannot become a file's name and an environment."""
    if not _ID.fullmatch(launch.id):
        what = f"{launch.id!r} is no launch id"
        raise PenstockError("bad_setting", f"{what}: 1 to 64 of A-Z a-z 0-9 . _ -, and no dot in front.", hint=_HINT)
    for name, value in {"pool": launch.pool, **launch.worker}.items():
        if "\0" in name + value:
            raise PenstockError("bad_setting", f"{name!r} of launch {launch.id} holds a NUL character.", hint=_HINT)


def log_name(launch: str) -> str:
    """Of its log: never a path that leads elsewhere."""
    return f"{launch if _ID.fullmatch(launch) else 'unnamed'}.log"


def tended_again(kept: Kept) -> Tended:
    """From the state file."""
    now = time.monotonic()
    return Tended(
        launch=kept.launch,
        state=LaunchState.STOPPING if kept.stopping else LaunchState.CRASH_LOOP if kept.crash_loop else LaunchState.STARTING,
        gpu=kept.gpu,
        since_ms=kept.since_ms,
        started_at=now - max(0.0, (now_ms() - kept.since_ms) / 1000),
        exits=kept.exits,
        restarts=Restarts(kept.failures),
        due_at=now + HALF_OPEN_S if kept.crash_loop else 0.0,
        error=kept.error,
        last_words=kept.last_words,
    )


def now_ms() -> int:
    """The machine's clock."""
    return int(time.time() * 1000)
