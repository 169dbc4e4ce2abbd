"""The workers that agents start: found in /proc by the run's mark, again and again, and written down when they come and go.

Never here: who should run (the autoscaler says), faults, judgement.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from autoscaler.agent.processes import LAUNCH, Identity, identity_of
from chaos.history import Recorder
from chaos.house import WORKER, House, Role
from dispatch.scaling import PoolOverride

POOL = "storm"
MARK = "CHAOS_MARK"
"""No setting of ours: an agent hands it on to its workers."""
HOST = b"PENSTOCK_AGENT__HOST"
BOUNDS = ("0..4", "1..2", "3..4", "0..1", "2..2", "0..0")
"""What an operator sets while it storms."""
_EVERY_S = 0.2
_STATE, _SESSION, _STARTED = 0, 3, 19  # in /proc/PID/stat, after the name


def bounds_of(name: str, house: House) -> PoolOverride:
    """Bounds from their name, which counts agents' workers alone. To the autoscaler any other one of the model is capacity."""
    least, _, most = name.partition("..")
    return PoolOverride(min=int(least) + others(house), max=int(most) + others(house))


def others(house: House) -> int:
    """How many workers of the pool's model no agent has started."""
    return sum(role.engine == "sim" for role in house.of(WORKER))


@dataclass(frozen=True, slots=True)
class Marked:
    """A living process of this run. `launch` "": no pool's worker itself."""

    process: Identity
    launch: str
    host: str
    command: str


@dataclass
class PoolWatch:
    """Looks for ever. `agents`: host name -> the agent's role."""

    house: House
    record: Recorder
    mark: str
    agents: dict[str, str]
    _known: dict[Identity, Marked] = field(default_factory=dict)
    _told: dict[str, list[int]] = field(default_factory=dict)

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            self.look()
            await asyncio.sleep(_EVERY_S)

    def look(self) -> dict[str, list[int]]:
        """Once: launch -> the processes that are it."""
        workers = {m.process: m for m in self.marked() if m.launch}
        for process in self._known.keys() - workers.keys():
            gone = self._known.pop(process)
            role = self.house.pool[gone.launch]
            told = role.told_to_end if role.found == process else False
            self.record("process", role=gone.launch, host=role.host, what="exit", pid=process.pid, code=None, told=told)
        for process, marked in workers.items():
            if process not in self._known:
                self._known[process] = marked
                self._add(marked)
        found: dict[str, list[int]] = {}
        for marked in workers.values():
            # Not in one step: whoever is named here still lived after all were seen.
            if marked.process.lives():
                found.setdefault(marked.launch, []).append(marked.process.pid)
        if found != self._told:
            self._told = found
            self.record("pool", procs=found)
        return found

    def marked(self) -> list[Marked]:
        """Every living process that has the mark."""
        return marked_by(self.mark)

    def _add(self, marked: Marked) -> None:
        role = self.house.pool.get(marked.launch)
        host = self.agents[marked.host]
        if role is None:
            agent = self.house.roles[host]
            log = self.house.folder / f"state-{marked.host}" / "logs" / f"{marked.launch}.log"
            role = Role(marked.launch, (), {}, log, agent.road, engine="sim", launched=True, host=host)
            self.house.pool[marked.launch] = role
        role.found, role.told_to_end = marked.process, False
        self.record("process", role=marked.launch, host=host, what="start", pid=marked.process.pid)


def marked_by(mark: str) -> list[Marked]:
    """Every living process that has that mark."""
    return [found for path in Path("/proc").glob("[0-9]*") if (found := _marked(path, mark)) is not None]


def _marked(path: Path, mark: str) -> Marked | None:
    try:
        raw = path.joinpath("environ").read_bytes()
        if f"{MARK}={mark}".encode() not in raw.split(b"\0"):
            return None
        fields = path.joinpath("stat").read_text().rpartition(")")[2].split()
        command = path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return None
    process = identity_of(int(path.name))
    if fields[_STATE] in "ZX" or process is None or process.started != fields[_STARTED]:
        return None
    around = dict(pair.partition(b"=")[::2] for pair in raw.split(b"\0") if pair)
    own = int(fields[_SESSION]) == process.pid  # the leader of its session: not its engines
    return Marked(process, around.get(LAUNCH, b"").decode() if own else "", around.get(HOST, b"").decode(), command)
