"""The launcher whose hands are agents on other hosts: it says who goes where, reads their reports, and rings them.

The orders themselves are written by the leader and read by the agents: a bell that fails costs only time. Never here: processes.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from autoscaler.jobs.line import JobLine
from autoscaler.jobs.payload import key_of
from autoscaler.launchers.fence import Fence
from autoscaler.launchers.placing import place, why_not
from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.scale_store import ScaleStore
from dispatch.scaling import HostReport, Launch, LaunchReport, LaunchState, Orders
from dispatch.settings import Settings

_GRACE_S = 5.0
"""How long a host must be missing, on top of its report's TTL: Redis, too, may have come back without the reports."""
_CRASHES_KEPT_S = 300.0
_COMPLAIN_EVERY_S = 60.0
_log = logging.getLogger("penstock.autoscaler")


@dataclass(frozen=True, slots=True)
class _Crash:
    until: float
    why: str


class AgentsLauncher:
    """See the module's docstring. `fleet`: whose heartbeat stands lives, also while its agent is away."""

    names_itself = False

    def __init__(self, settings: Settings, store: ScaleStore, fleet: Fleet | None = None, *, grace_s: float = _GRACE_S) -> None:
        self._store = store
        self._fleet = fleet
        self._grace_s = grace_s
        self._fence = Fence()
        self._orders = Orders(settings.autoscaler.group, 0)
        self._missing_since: dict[str, float] = {}
        self._crashes: dict[str, dict[str, _Crash]] = {}  # pool -> host -> what happened there
        self._told: dict[str, object] = {}
        self._complained_at = 0.0
        url = settings.agent.rq_url or settings.redis.url
        self._line = JobLine(url, key_of(settings.agent.secret.get_secret_value())) if settings.agent.secret and url else None

    async def assign(self, orders: Orders) -> Orders:
        """See the port `Assigns`."""
        return place(orders, await self._store.hosts(), {pool: hosts.keys() for pool, hosts in self._crashes.items()})

    async def apply(self, orders: Orders) -> None:
        """The orders are where agents read them. Those whose part has changed are rung."""
        self._fence.check(orders)
        self._orders = orders
        parts: dict[str, list[Launch]] = {}
        for launch in orders.launches().values():
            if launch.host:
                parts.setdefault(launch.host, []).append(launch)
        for host in parts.keys() | self._told.keys():
            part = (orders.epoch, tuple(parts.get(host, ())))
            if self._told.get(host) != part:
                self._told[host] = part
                await self._ring(host, orders.epoch)
        for host in [host for host in self._told if host not in parts]:
            del self._told[host]

    async def reports(self) -> Mapping[str, LaunchReport]:
        """What agents say; and for hosts that are gone, that their workers are."""
        hosts = await self._store.hosts()
        found = {report.id: report for host in hosts for report in host.launches}
        self._note_crashes(found)
        for launch in await self._lost(hosts):
            why = f"its host {launch.host} is gone: no agent has reported for a while"
            found[launch.id] = LaunchReport(launch.id, launch.pool, LaunchState.GONE, launch.host, error=why)
        return found

    async def unplaceable(self, pool: str, need_bytes: int) -> str:
        """See the port."""
        hosts = await self._store.hosts()
        crashes = {name: crash for name, crash in self._crashes.get(pool, {}).items() if crash.until > time.monotonic()}
        sound = [host for host in hosts if host.host not in crashes]
        if hosts and not sound:
            name, crash = next(iter(crashes.items()))
            return f"its workers crash on every host, last on {name}: {crash.why}"
        return why_not(self._orders, sound, need_bytes)

    async def close(self) -> None:
        """The workers go on."""
        if self._line is not None:
            await self._line.close()

    async def _ring(self, host: str, epoch: int) -> None:
        if self._line is None:
            return
        try:
            await self._line.ring(host, epoch)
        except STORE_FAULT as error:
            if time.monotonic() - self._complained_at >= _COMPLAIN_EVERY_S:
                self._complained_at = time.monotonic()
                _log.warning("cannot ring agents; they look by themselves", extra={"host": host, "why": str(error)})

    async def _lost(self, hosts: list[HostReport]) -> list[Launch]:
        """The launches of hosts that have been missing for long, and of which nothing is heard."""
        orders, now = await self._store.orders(self._orders.group), time.monotonic()
        there = {host.host for host in hosts}
        ordered = [launch for launch in orders.launches().values() if launch.host and launch.host not in there]
        away = {launch.host for launch in ordered}
        self._missing_since = {host: self._missing_since.get(host, now) for host in away}
        lost = [launch for launch in ordered if now - self._missing_since[launch.host] >= self._grace_s]
        if lost and self._fleet is not None:
            alive = {beat.launch for beat in await self._fleet.workers()}
            lost = [launch for launch in lost if launch.id not in alive]
        return lost

    def _note_crashes(self, reports: Mapping[str, LaunchReport]) -> None:
        now = time.monotonic()
        for report in reports.values():
            if report.state is LaunchState.CRASH_LOOP:
                self._crashes.setdefault(report.pool, {})[report.host] = _Crash(now + _CRASHES_KEPT_S, report.error)
        for pool in list(self._crashes):
            self._crashes[pool] = {host: crash for host, crash in self._crashes[pool].items() if crash.until > now}
            if not self._crashes[pool]:
                del self._crashes[pool]
