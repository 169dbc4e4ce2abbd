"""THE tick: lead or stand by; observe, decide, apply. What a leader decided is written before it is carried out, and only while
it leads.

Never here: what is decided (policy.py), which workers that means (arrange.py), who is told (applying.py), how one is started
(launchers).
"""

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from autoscaler.applying import Applying, Hands
from autoscaler.arrange import Arrangement, adopt, arrange
from autoscaler.history import recalled
from autoscaler.launchers.base import Assigns, DiesWithUs
from autoscaler.observe import Around, Learned, look_around, observe
from autoscaler.policy import Decision, History, decide
from autoscaler.pools import Pool, share_of
from autoscaler.records import record_of
from autoscaler.seen import Phase, Seen
from autoscaler.telling import Telling
from dispatch.demand import Demand
from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.scale_store import ScaleStore
from dispatch.scaling import (
    Action,
    DecisionRecord,
    LauncherName,
    LaunchReport,
    Leadership,
    Orders,
    PoolOrders,
    PoolOverride,
    PoolStatus,
    ScalingPolicy,
)

_log = logging.getLogger("penstock.autoscaler")
_REPORTS_SHOWN = 50
_SET_BACK_MS = 5_000
_REBUILDING_MS = 20_000
"""After a Redis that knew of no orders: what hands report meanwhile is taken over."""
_HEARD_MS = 3_000
"""The first part of it, in which nothing is decided for hands that report through Redis: they had no time to."""
_LOOKED_BACK = 1_000
"""Entries of the log that a new leader reads: it is bounded, and turns of long ago do not matter."""


@dataclass(slots=True)
class _Memory:
    """What is remembered of a pool while this process leads."""

    history: History = field(default_factory=History)
    learned: Learned = field(default_factory=Learned)
    telling: Telling = field(default_factory=Telling)
    starting: set[str] = field(default_factory=set)  # launches that were seen on their way


@dataclass(frozen=True, slots=True)
class _Told:
    """One pool after its decision."""

    pool: Pool
    seen: Seen
    decision: Decision
    arrangement: Arrangement
    reports: Mapping[str, LaunchReport]

    @property
    def is_over(self) -> bool:
        """A pool that is in no setting any more, and has no worker left."""
        return self.pool.removed and not self.seen.blind and not self.arrangement.orders.launches


class Reconciler:
    """One of a group's autoscalers. `pools` are read anew each tick: overrides change. `launchers` by their names."""

    def __init__(
        self,
        group: str,
        who: str,
        store: ScaleStore,
        demand: Demand,
        fleet: Fleet,
        launchers: Hands,
        pools: Callable[[Mapping[str, PoolOverride], Mapping[str, PoolOrders]], list[Pool]],
        *,
        lease_ms: int,
        keep: int,
        dry_run: bool = False,
    ) -> None:
        self.leadership: Leadership | None = None
        self._group = group
        self._who = who
        self._store = store
        self._demand = demand
        self._fleet = fleet
        self._launchers = launchers
        self._applying = Applying(group, store, fleet, launchers)
        self._pools = pools
        self._lease_ms = lease_ms
        self._keep = keep
        self._dry_run = dry_run
        self._orders: Orders | None = None
        self._memory: dict[str, _Memory] = {}
        self._now_ms = 0
        self._rebuilding_until_ms = 0
        self._known = True  # whether Redis knew of orders at the last look

    @property
    def lease_s(self) -> float:
        """How long the lease stands without a renewal."""
        return self._lease_ms / 1000

    @property
    def leads(self) -> bool:
        """Whether it led at the last tick."""
        return self.leadership is not None and self.leadership.leads

    async def tick(self) -> list[DecisionRecord]:
        """Once. Returns what was written into the log. Raises what Redis raises: then nothing was carried out."""
        if self._dry_run:
            return await self._rehearse()
        leadership = await self._lead()
        if not leadership.leads:
            return []
        if not self._memory:
            await self._recall()
        told, around, left = await self._decide_all()
        orders = Orders(self._group, leadership.epoch, tuple(each.arrangement.orders for each in told if not each.is_over))
        orders = await self._applying.assigned(orders)
        statuses = [self._status(each, leadership, around) for each in told]
        if not await self._store.order(leadership, self._group, orders, statuses, keep=self._keep):
            self._forget("its lease was over before it had decided")
            return []
        self._orders = orders
        await self._applying.drains(orders, {name for each in told for name in each.reports}, around)
        await self._applying.apply(orders, leadership, left.values())
        for each in told:
            await self._learn_starts(each)
            if each.is_over:
                await self._store.forget_pool(each.pool.name)
        return [record for _, record in statuses if record is not None]

    async def keep(self) -> None:
        """Renew the lease beside a tick that takes long. Never takes it: that is the tick's."""
        if self.leads and not self._dry_run:
            leader = await self._store.leader(self._group)
            if leader.leads and leader.leader == self._who:
                await self._store.lead(self._group, self._who, self._lease_ms)

    async def _rehearse(self) -> list[DecisionRecord]:
        """Decide as a leader would, on what runs now, without leading: nothing is changed but the log."""
        self._orders = None
        told, around, _ = await self._decide_all()
        records = [
            record
            for each in told
            if (record := self._entry(each, record_of(each.pool, each.seen, each.decision, 0, around.now_ms, dry_run=True)))
        ]
        await self._store.note_dry(records, keep=self._keep)
        return records

    async def _decide_all(self) -> tuple[list[_Told], Around, Mapping[str, PoolOrders]]:
        before = self._orders or await self._store.orders(self._group)
        by_pool = {orders.pool: orders for orders in before.pools}
        around = await look_around(self._store, self._fleet)
        if around.now_ms < self._now_ms - _SET_BACK_MS:
            _log.warning("Redis's clock was set back: begin anew", extra={"by_s": (self._now_ms - around.now_ms) / 1000})
            self._memory.clear()
        self._now_ms = around.now_ms
        if not before.epoch and self._known:  # a new installation, or a Redis that lost its memory
            self._rebuilding_until_ms = around.now_ms + _REBUILDING_MS
        self._known = before.epoch > 0
        pools = self._pools(await self._store.overrides(), by_pool)
        reports = await self._reports({pool.launcher for pool in pools})
        told = [await self._decide(pool, pools, by_pool, around, reports[pool.launcher]) for pool in pools]
        return told, around, by_pool

    async def _reports(self, names: Iterable[LauncherName]) -> dict[LauncherName, Mapping[str, LaunchReport] | PenstockError]:
        """What each launcher knows, asked once, all at the same time."""

        async def ask(name: LauncherName) -> Mapping[str, LaunchReport] | PenstockError:
            try:
                return await self._launchers[name].reports()
            except PenstockError as error:
                return error
            except KeyError:
                return PenstockError("bad_setting", f"There is no launcher {name.value!r} here.", param="autoscaler.launcher")

        asked = sorted(names)
        return dict(zip(asked, await asyncio.gather(*(ask(name) for name in asked)), strict=True))

    async def resign(self) -> None:
        """Leave the lease to the next one."""
        if self.leads:
            await self._store.resign(self._group, self._who)
        self.leadership, self._orders = None, None

    # ---- leading

    async def _lead(self) -> Leadership:
        before = self.leadership
        now = await self._store.lead(self._group, self._who, self._lease_ms)
        if now.leads and (before is None or before.epoch != now.epoch or not before.leads):
            if before is None or not before.leads or now.epoch != before.epoch + 1:
                self._forget("")  # what was remembered may be from before somebody else led
            _log.info("lead", extra={"group": self._group, "epoch": now.epoch, "autoscaler": self._who})
        elif not now.leads and (before is None or before.leads):
            self._forget(f"{now.leader} leads" if before else "")
            _log.info("stand by", extra={"group": self._group, "leader": now.leader, "epoch": now.epoch})
        self.leadership = now
        return now

    async def _recall(self) -> None:
        """The last turns of every pool, from the log: who led before remembered them."""
        newest: dict[str, list[DecisionRecord]] = {}
        looked = 0
        async for _, record in self._store.decisions():
            newest.setdefault(record.pool, []).append(record)
            if (looked := looked + 1) == _LOOKED_BACK:
                break
        self._memory = {pool: _Memory(recalled(reversed(records))) for pool, records in newest.items()}

    def _forget(self, why: str) -> None:
        if why:
            _log.warning("no longer lead", extra={"group": self._group, "why": why})
            self.leadership = None
        self._orders = None
        self._memory.clear()

    # ---- observe, decide

    async def _decide(
        self,
        pool: Pool,
        pools: Sequence[Pool],
        before: Mapping[str, PoolOrders],
        around: Around,
        reported: Mapping[str, LaunchReport] | PenstockError,
    ) -> _Told:
        memory = self._memory.setdefault(pool.name, _Memory())
        orders = replace(before.get(pool.name) or PoolOrders(pool.name, pool.model), model=pool.model, launcher=pool.launcher)
        reports: Mapping[str, LaunchReport] = {}
        try:
            if isinstance(reported, PenstockError):
                raise reported
            launcher = self._launchers[pool.launcher]
            rebuilding = around.now_ms < self._rebuilding_until_ms
            if self._orders is None and isinstance(launcher, DiesWithUs):
                orders, rebuilding = replace(orders, launches=(), retiring=()), True
            reports = {name: r for name, r in reported.items() if r.pool == pool.name}
            orders = adopt(orders, reports, pool.launch("", 0), names_itself=launcher.names_itself, known=not rebuilding)
            if isinstance(launcher, Assigns) and self._rebuilding_until_ms - around.now_ms > _REBUILDING_MS - _HEARD_MS:
                raise PenstockError("launcher_failed", "Redis knew of no orders; hosts are given time to tell what runs.")
            seen = await observe(
                self._demand,
                self._store,
                around,
                orders,
                reports,
                memory.learned,
                unplaceable=await launcher.unplaceable(pool.name, pool.need_bytes),
                wants_ttft=ScalingPolicy.LATENCY in pool.policy.policies,
                others={n for other in before.values() if other.pool != pool.name for n in Orders("", 0, (other,)).launches()},
            )
            seen = share_of(seen, pool, pools)
        except PenstockError as error:
            seen = Seen(around.now_ms / 1000, blind=error.message)
        unknown = not seen.blind and await self._fleet.card(pool.model) is None
        policy = replace(pool.policy, min=max(pool.policy.min, min(1, pool.policy.max))) if unknown else pool.policy
        decision, memory.history = decide(seen, policy, memory.history)
        if unknown:
            decision = replace(decision, reason=f"{decision.reason}; no worker of {pool.model} ever ran: one brings its card")
        if seen.blind:
            return _Told(pool, seen, decision, Arrangement(orders), reports)
        if pool.policy.paused:  # left as it is: who drains goes on working
            return _Told(pool, seen, decision, Arrangement(replace(orders, retiring=())), reports)
        arrangement = arrange(
            orders,
            seen.workers,
            reports,
            decision.desired,
            decision.replace,
            lambda: pool.launch(_new_launch_id(), around.now_ms),
            blocked=decision.action is Action.BLOCKED,
        )
        return _Told(pool, seen, decision, arrangement, reports)

    def _status(self, told: _Told, leadership: Leadership, around: Around) -> tuple[PoolStatus, DecisionRecord | None]:
        record = record_of(told.pool, told.seen, told.decision, leadership.epoch, around.now_ms, dry_run=False)
        status = PoolStatus(
            pool=told.pool.name,
            model=told.pool.model,
            group=self._group,
            launcher=told.pool.launcher,
            leader=self._who,
            decided=record,
            workers=Counter(worker.phase.value for worker in told.seen.workers),
            cold_start_s=told.seen.cold_start_s[0] if told.seen.cold_start_s else None,
            tokens_per_s_each=round(told.seen.tokens_per_s_each, 1),
            unplaceable=told.seen.unplaceable,
            override=told.pool.override,
            reports=tuple(told.reports.values())[:_REPORTS_SHOWN],
        )
        return status, self._entry(told, record)

    def _entry(self, told: _Told, record: DecisionRecord) -> DecisionRecord | None:
        return self._memory[told.pool.name].telling.entry(record, tell=told.decision.tell)

    # ---- learn

    async def _learn_starts(self, told: _Told) -> None:
        """How long it took from its start to ready, of each that was seen on its way."""
        memory = self._memory.setdefault(told.pool.name, _Memory())
        if told.seen.blind:
            return
        phases = {worker.launch: worker for worker in told.seen.workers if worker.launch}
        for name in [name for name in memory.starting if name in phases and phases[name].phase is Phase.READY]:
            with suppress(STORE_FAULT):
                await self._store.note_start(told.pool.name, int(phases[name].age_s * 1000))
        memory.starting = {n for n, worker in phases.items() if worker.phase in (Phase.STARTING, Phase.LOADING)}


def _new_launch_id() -> str:
    return f"l-{secrets.token_hex(4)}"
