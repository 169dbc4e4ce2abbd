"""What the autoscaler's part of Redis says while a run lasts: who leads, what is ordered, what agents have carried out; and a
stranger that orders and rings with the papers of leaders of old.

Read and written past every proxy. Never here: processes (pool.py), judgement.
"""

import asyncio
import random
from collections import deque
from typing import Any

from autoscaler.jobs.line import JobLine
from autoscaler.jobs.payload import key_of
from chaos.house import AUTOSCALER
from chaos.pool import POOL
from chaos.scene import AWAY, Scene
from dispatch.scale_store import ScaleStore
from dispatch.scaling import Leadership, Orders

GROUP = "main"
_EVERY_S = 0.2
_REMEMBERED = 20
_FORGED_SHARE = 0.2
_LEADER_PID = 2  # of as-HOST-PID-RANDOM, from the end


class ScaleWatch:
    """One watcher, and the stranger."""

    def __init__(self, scene: Scene, lease_s: float, hosts: list[str], secret: str) -> None:
        self._scene = scene
        self._lease_ms = int(lease_s * 1000)
        self._hosts = hosts
        self._key = key_of(secret)
        self._rng = random.Random("scale forger")
        self._old: deque[Leadership] = deque(maxlen=_REMEMBERED)
        self._leader = Leadership("", 0, False)
        self._orders: dict[str, Any] = {}
        self._epochs: dict[str, int] = {}

    async def run(self) -> None:
        """Sample, and forge, for ever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                async with asyncio.timeout(2):
                    store = ScaleStore(await self._scene.redis())
                    await self._look(store)
                    if self._rng.random() < _FORGED_SHARE:
                        await self._forge(store)
            except AWAY:
                continue

    async def write_final(self) -> None:
        """Every decision that the log kept, oldest first."""
        store = ScaleStore(await self._scene.redis())
        told = [(entry, d.epoch, d.action.value, d.to_workers) async for entry, d in store.decisions(POOL)]
        self._scene.record("decisions", entries=told[::-1])

    async def _look(self, store: ScaleStore) -> None:
        leader = await store.leader(GROUP)
        if (leader.leader, leader.epoch) != (self._leader.leader, self._leader.epoch):
            if self._leader.epoch:
                self._old.append(self._leader)
            self._scene.record("leadership", leader=leader.leader, epoch=leader.epoch)
        self._leader = leader
        self._scene.house.leading = self._role_of(leader.leader)
        orders = await store.orders(GROUP)
        said = {
            "epoch": orders.epoch,
            "launches": {launch.id: launch.host for launch in orders.launches().values()},
            "retiring": sorted(name for pool in orders.pools for name in pool.retiring),
        }
        if said != self._orders:
            self._orders = said
            self._scene.record("orders", **said)
        for report in await store.hosts():
            if self._epochs.get(report.host) != report.epoch:
                self._epochs[report.host] = report.epoch
                self._scene.record("carried", host=report.host, agent=report.agent, epoch=report.epoch)

    async def _forge(self, store: ScaleStore) -> None:
        """Nobody should run: with the name of one who led, under its epoch; then a bell that says so, too."""
        if not self._old:
            return
        old = self._rng.choice(self._old)
        taken = await store.order(old, GROUP, Orders(GROUP, old.epoch), [], keep=10_000)
        self._scene.record("forged_order", epoch=old.epoch, leader=old.leader, taken=taken)
        line = JobLine(f"redis://127.0.0.1:{(await self._scene.server.master()).port}/0", self._key)
        try:
            for _ in range(2):
                await line.ring(self._rng.choice(self._hosts), old.epoch)
        finally:
            await line.close()

    def _role_of(self, leader: str) -> str:
        pid = leader.rsplit("-", _LEADER_PID)[1] if leader.count("-") >= _LEADER_PID else ""
        return next((r.name for r in self._scene.house.of(AUTOSCALER) if str(r.pid) == pid), "")
