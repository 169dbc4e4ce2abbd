"""Which host takes which launch: by free GPU memory, and once placed, for good. Pure.

Never here: where the reports come from (agents.py), which GPU of its host a worker gets (the host's agent).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dispatch.scaling import HostReport, Launch, LaunchState, Orders

_SETTLE_MS = 30_000
"""A worker younger than this may not have taken its memory yet: until then the GPUs' own numbers are too good."""


@dataclass(slots=True)
class _Room:
    """What is left on a host while launches are given out. `free`: bytes, a GPU each; the host's own memory where it has none."""

    name: str
    free: list[int]
    gpus: int
    share: int
    most: int
    workers: int = 0

    def lacks(self, need_bytes: int) -> str:
        """Why one more does not go here; "" if it does."""
        most = self.most if self.most >= 0 else None if need_bytes else max(1, self.gpus)
        if most is not None and self.workers >= most:
            return f"{self.name} has its {most} workers"
        if need_bytes > max(self.free, default=0):
            return f"{self.name} has {max(self.free, default=0)} bytes free on its best GPU"
        return ""

    def take(self, need_bytes: int, *, memory: bool = True) -> None:
        """One worker more. `memory`: it has not taken any yet. A need that is not known counts as a fair share."""
        self.workers += 1
        if memory and self.free:
            best = max(range(len(self.free)), key=self.free.__getitem__)
            self.free[best] = max(0, self.free[best] - (need_bytes or self.share))


def place(orders: Orders, hosts: Sequence[HostReport], avoid: Mapping[str, Iterable[str]] | None = None) -> Orders:
    """The same orders with a host for every launch that fits somewhere. Those that have one keep it, also while it is away.

    `avoid`: by pool, the hosts where its workers crash; they are taken only if there is no other.
    """
    rooms = _rooms(orders, hosts)
    placed: dict[str, str] = {}
    for launch in orders.launches().values():
        if launch.host:
            continue
        shunned = frozenset((avoid or {}).get(launch.pool, ()))
        fitting = [room for room in rooms if not room.lacks(launch.need_bytes)]
        best = max(fitting, key=lambda room: (room.name not in shunned, max(room.free, default=0), -room.workers), default=None)
        if best is not None:
            best.take(launch.need_bytes)
            placed[launch.id] = best.name
    return _with_hosts(orders, placed)


def why_not(orders: Orders, hosts: Sequence[HostReport], need_bytes: int) -> str:
    """Why one more worker goes nowhere; "" if it goes somewhere."""
    if not hosts:
        return "no agent has reported: start `penstock agent` on a host"
    reasons = [room.lacks(need_bytes) for room in _rooms(orders, hosts)]
    if not all(reasons):
        return ""
    need = f"a worker needs {need_bytes} bytes on a GPU; " if need_bytes else ""
    return need + "; ".join(reasons[:5]) + (f"; and {len(reasons) - 5} more hosts" if len(reasons) > 5 else "")


def _rooms(orders: Orders, hosts: Sequence[HostReport]) -> list[_Room]:
    launches = orders.launches()
    rooms = []
    for host in sorted(hosts, key=lambda report: report.host):
        free = [gpu.free_bytes for gpu in host.gpus] if host.gpus else [host.free_bytes]
        most = host.most_workers
        share = max(free, default=0) // max(1, most if most > 0 else 1) // 2
        room = _Room(host.host, free, len(host.gpus), share, most)
        reported = {report.id: report for report in host.launches}
        for launch in launches.values():
            if launch.host == host.host:
                report = reported.get(launch.id)
                settled = report is not None and report.pid > 0 and host.seen_at_ms - report.since_ms > _SETTLE_MS
                room.take(launch.need_bytes, memory=not settled and not _shows(host, launch))
        # Those that end still hold their place.
        leaving = [r for r in host.launches if r.id not in launches and r.state is not LaunchState.GONE]
        room.workers += len(leaving)
        rooms.append(room)
    return rooms


def _shows(host: HostReport, launch: Launch) -> bool:
    """Whether the agent has counted the launch into what it says is free: it does, for each that it started."""
    return any(report.id == launch.id and report.pid > 0 for report in host.launches) and launch.need_bytes > 0


def _with_hosts(orders: Orders, placed: Mapping[str, str]) -> Orders:
    return replace(
        orders,
        pools=tuple(
            replace(pool, launches=tuple(replace(each, host=placed.get(each.id, each.host)) for each in pool.launches))
            for pool in orders.pools
        ),
    )
