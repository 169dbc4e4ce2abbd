"""Orders on their way to the hands: who goes where, who is asked to drain, and each launcher its part, while the leader leads.

Never here: what the orders are (reconcile.py, arrange.py), how one worker is started or ended (launchers).
"""

import logging
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Protocol

from autoscaler.launchers.base import Assigns, Launcher
from autoscaler.observe import Around
from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.scale_store import ScaleStore
from dispatch.scaling import LauncherName, Leadership, Orders, PoolOrders

_log = logging.getLogger("penstock.autoscaler")


class Hands(Protocol):
    """The launchers."""

    def __getitem__(self, name: LauncherName, /) -> Launcher:
        """Raises PenstockError, or KeyError, where there is none."""
        ...


class Applying:
    """Of one group."""

    def __init__(self, group: str, store: ScaleStore, fleet: Fleet, launchers: Hands) -> None:
        self._group = group
        self._store = store
        self._fleet = fleet
        self._launchers = launchers
        self._asked: set[str] = set()  # to drain, by us
        self._complained: dict[str, str] = {}  # launcher -> what was said of it last

    async def assigned(self, orders: Orders) -> Orders:
        """The same orders, with hosts where a launcher has several."""
        for name in {pool.launcher for pool in orders.pools}:
            launcher = self._launcher(name)
            if isinstance(launcher, Assigns):
                assigned = await launcher.assign(_part(orders, name))
                new = {pool.pool: pool for pool in assigned.pools}
                orders = replace(orders, pools=tuple(new.get(pool.pool, pool) for pool in orders.pools))
        return orders

    async def drains(self, orders: Orders, reported: Collection[str], around: Around) -> None:
        """Those that retire are asked, again if Redis forgot; those kept are asked no more, nor those that are gone for good:
        neither ordered nor `reported` by hands nor heard of."""
        retiring = {name for pool in orders.pools for name in pool.retiring}
        ours = orders.launches().keys()
        there = {*ours, *reported, *(beat.launch for beat in around.beats)}
        kept = [name for name in around.drains if name in ours and name not in retiring]
        gone = [name for name in self._asked if name not in there]
        await self._fleet.take_back_drain(*kept, *gone)
        await self._fleet.ask_to_drain(*(name for name in retiring if name not in around.drains), now_ms=around.now_ms)
        self._asked = (self._asked | retiring) & there

    async def apply(self, orders: Orders, leadership: Leadership, left: Iterable[PoolOrders]) -> None:
        """To each launcher its part; also to those whose last pool is over (`left`: the orders before)."""
        names = {pool.launcher for pool in (*orders.pools, *left) if pool.launcher}
        for name in sorted(names):
            launcher = self._launcher(name)
            now = await self._store.leader(self._group)
            if launcher is None or not now.leads or (now.leader, now.epoch) != (leadership.leader, leadership.epoch):
                continue
            try:
                await launcher.apply(_part(orders, name))
                self._complained.pop(name, None)
            except PenstockError as error:
                if self._complained.get(name) != error.message:
                    self._complained[name] = error.message
                    _log.warning("cannot carry out orders", extra={"launcher": name, "error": error.message})

    def _launcher(self, name: str) -> Launcher | None:
        try:
            return self._launchers[LauncherName(name)]
        except (PenstockError, ValueError, KeyError):
            return None  # its pools are blind, and say so


def _part(orders: Orders, launcher: str) -> Orders:
    """The orders of one launcher's pools."""
    return replace(orders, pools=tuple(pool for pool in orders.pools if pool.launcher == launcher))
