"""The kernel's own counters of processes it killed for want of memory: of a process's memory cgroup, and of the machine.

A SIGKILL does not say who sent it; a counter that rose meanwhile does. Linux alone has them: elsewhere there are none.
Never here: what follows from one (process.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_NAME = "oom_kill"


@dataclass(frozen=True, slots=True)
class OomKills:
    """One look: counter file -> its number."""

    counts: Mapping[str, int] = field(default_factory=dict)

    def rose_since(self, before: "OomKills") -> bool:
        """Whether one of the counters there were before is greater now; one that is new says nothing."""
        return any(count > before.counts.get(name, count) for name, count in self.counts.items())


class OomWatch:
    """The counters around one process, looked at now and then while it lives."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._files = counter_files(pid)
        # Two looks back: the kernel counts a moment before its victim is gone, and a look may fall between the two.
        self._before = self._last = read_oom_kills(self._files)

    def look(self) -> None:
        """Note how they stand. A process may have been moved to another cgroup."""
        files = counter_files(self._pid) or self._files
        if files != self._files:
            self._files, self._last = files, read_oom_kills(files)
        self._before, self._last = self._last, read_oom_kills(self._files)

    def rose_since_the_look_before(self) -> bool:
        """Whether the kernel killed for memory here since the look before the last one."""
        return read_oom_kills(self._files).rose_since(self._before)


def counter_files(pid: int, proc: Path = Path("/proc")) -> tuple[Path, ...]:
    """The files that count for a living process; none where it has gone or the machine has none."""
    try:
        groups = [line.split(":", 2) for line in (proc / str(pid) / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "self" / "mountinfo").read_text().splitlines()]
    except OSError:
        return ()
    found = [proc / "vmstat"]
    for _, controllers, path in (g for g in groups if len(g) == 3):
        for root, mount, kind, options in map(_mount, mounts):
            if kind == "cgroup2" and not controllers:
                found.append(_inside(mount, root, path) / "memory.events")
            elif kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(","):
                found.append(_inside(mount, root, path) / "memory.oom_control")
    return tuple(file for file in found if file.is_file())


def read_oom_kills(files: tuple[Path, ...]) -> OomKills:
    """Their numbers now; a file that cannot be read, or has no such line, is left out."""
    counts: dict[str, int] = {}
    for file in files:
        try:
            fields = (line.split() for line in file.read_text().splitlines())
            counts.update({str(file): int(f[1]) for f in fields if len(f) == 2 and f[0] == _NAME})
        except (OSError, ValueError):
            continue
    return OomKills(counts)


def _mount(fields: list[str]) -> tuple[str, Path, str, str]:
    """Root, mount point, kind and its own options of a line of mountinfo."""
    dash = fields.index("-")
    return fields[3], Path(fields[4]), fields[dash + 1], fields[-1]


def _inside(mount: Path, root: str, path: str) -> Path:
    """A cgroup's folder: its path counts from the top of the hierarchy, the mount may begin below that."""
    below = path.removeprefix(root) if root != "/" else path
    return mount / below.lstrip("/")
