"""THE tick: lead or stand by; observe, decide, apply. What a leader decided is written before it is carried out, and only while
it leads.

Never here: what is decided (policy.py), which workers that means (arrange.py), how one is started (launchers).
"""

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from autoscaler.arrange import Arrangement, adopt, arrange
from autoscaler.history import recalled
from autoscaler.launchers.base import Assigns, DiesWithUs, Launcher
from autoscaler.observe import Around, Learned, look_around, observe
from autoscaler.policy import Decision, History, Rule, decide
from autoscaler.pools import Pool
from autoscaler.seen import Phase, Seen
from autoscaler.telling import Telling
from dispatch.demand import Demand
from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.scale_store import ScaleStore
from dispatch.scaling import Action, DecisionRecord, LaunchReport, Leadership, Orders, PoolOrders, PoolOverride, PoolStatus
from dispatch.settings import Launcher as LauncherName

_log = logging.getLogger("penstock.autoscaler")
_REPORTS_SHOWN = 50
_LOOKED_BACK = 1_000
"""Entries of the log that a new leader reads: it is bounded, and turns of long ago do not matter."""


@dataclass(slots=True)
class _Memory:
    """What is remembered of a pool while this process leads."""

    history: History = field(default_factory=History)
    learned: Learned = field(default_factory=Learned)
    telling: Telling = field(default_factory=Telling)
    ready: set[str] | None = None  # launches that were ready; None: not looked yet, so no start is learned from


@dataclass(frozen=True, slots=True)
class _Told:
    """One pool after its decision."""

    pool: Pool
    seen: Seen
    decision: Decision
    arrangement: Arrangement
    reports: Mapping[str, LaunchReport]


class Reconciler:
    """One of a group's autoscalers. `pools` are read anew each tick: overrides change. `launchers` by their names."""

    def __init__(
        self,
        group: str,
        who: str,
        store: ScaleStore,
        demand: Demand,
        fleet: Fleet,
        launchers: Mapping[LauncherName, Launcher],
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
        self._pools = pools
        self._lease_ms = lease_ms
        self._keep = keep
        self._dry_run = dry_run
        self._orders: Orders | None = None
        self._memory: dict[str, _Memory] = {}
        self._asked: set[str] = set()  # to drain, by us

    @property
    def leads(self) -> bool:
        """Whether it led at the last tick."""
        return self.leadership is not None and self.leadership.leads

    async def tick(self) -> list[DecisionRecord]:
        """Once. Returns what was written into the log. Raises what Redis raises: then nothing was carried out."""
        leadership = await self._lead()
        if not leadership.leads:
            return []
        if not self._memory:
            await self._recall()
        before = self._orders or await self._store.orders(self._group)
        by_pool = {orders.pool: orders for orders in before.pools}
        around = await look_around(self._store, self._fleet)
        pools = self._pools(await self._store.overrides(), by_pool)
        told = [await self._decide(pool, by_pool.get(pool.name), around, known=before.epoch > 0) for pool in pools]
        orders = Orders(self._group, leadership.epoch, tuple(each.arrangement.orders for each in told))
        orders = await self._assigned(orders, pools)
        statuses = [self._status(each, leadership, around) for each in told]
        if not await self._store.order(leadership, self._group, None if self._dry_run else orders, statuses, keep=self._keep):
            self._forget("another one leads now")
            return []
        self._orders = orders
        if not self._dry_run:
            await self._ask_to_drain(told, around)
            await self._apply(orders, pools)
        for each in told:
            await self._learn_starts(each)
        return [record for _, record in statuses if record is not None]

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
            # What was remembered may be from before somebody else led.
            self._forget("")
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

    async def _decide(self, pool: Pool, orders: PoolOrders | None, around: Around, *, known: bool) -> _Told:
        memory = self._memory.setdefault(pool.name, _Memory())
        orders = replace(orders or PoolOrders(pool.name, pool.model), model=pool.model)
        launcher = self._launchers.get(pool.launcher)
        reports: Mapping[str, LaunchReport] = {}
        try:
            if launcher is None:
                raise PenstockError("bad_setting", f"There is no launcher {pool.launcher.value!r} here.")
            if self._orders is None and isinstance(launcher, DiesWithUs):
                orders, known = PoolOrders(pool.name, pool.model), False
            reports = {name: r for name, r in (await launcher.reports()).items() if r.pool == pool.name}
            orders = adopt(orders, reports, names_itself=launcher.names_itself, known=known)
            seen = await observe(
                self._demand,
                self._store,
                around,
                orders,
                reports,
                memory.learned,
                unplaceable=await launcher.unplaceable(pool.name, pool.need_bytes),
                wants_ttft=Rule.LATENCY in pool.policy.rules,
            )
        except PenstockError as error:
            seen = Seen(around.now_ms / 1000, blind=error.message)
        unknown = not seen.blind and await self._fleet.card(pool.model) is None
        policy = replace(pool.policy, min=max(pool.policy.min, min(1, pool.policy.max))) if unknown else pool.policy
        decision, memory.history = decide(seen, policy, memory.history)
        if unknown:
            decision = replace(decision, reason=f"{decision.reason}; no worker of {pool.model} ever ran: one brings its card")
        if seen.blind or pool.policy.paused:
            return _Told(pool, seen, decision, Arrangement(orders), reports)
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
        memory = self._memory[told.pool.name]
        record = _record(told, leadership.epoch, around.now_ms, dry_run=self._dry_run)
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
        return status, memory.telling.entry(record, tell=told.decision.tell)

    # ---- apply

    async def _assigned(self, orders: Orders, pools: list[Pool]) -> Orders:
        for name, launcher in self._launchers.items():
            if isinstance(launcher, Assigns):
                assigned = await launcher.assign(_part(orders, pools, name))
                new = {pool.pool: pool for pool in assigned.pools}
                orders = replace(orders, pools=tuple(new.get(pool.pool, pool) for pool in orders.pools))
        return orders

    async def _ask_to_drain(self, told: list[_Told], around: Around) -> None:
        """Those that retire are asked, again if Redis forgot; those kept are asked no more, nor those that are gone for good."""
        retiring = {name for each in told for name in each.arrangement.orders.retiring}
        ours = {launch.id for each in told for launch in each.arrangement.orders.launches}
        there = ours.union(*(each.reports for each in told))
        kept = [name for name in around.drains if name in ours and name not in retiring]
        gone = [name for name in self._asked if name not in there]
        await self._fleet.take_back_drain(*kept, *gone)
        await self._fleet.ask_to_drain(*(name for name in retiring if name not in around.drains), now_ms=around.now_ms)
        self._asked = (self._asked | retiring) & there

    async def _apply(self, orders: Orders, pools: list[Pool]) -> None:
        for name, launcher in self._launchers.items():
            try:
                await launcher.apply(_part(orders, pools, name))
            except PenstockError as error:
                _log.warning("cannot carry out orders", extra={"launcher": name.value, "error": error.message})

    async def _learn_starts(self, told: _Told) -> None:
        """How long it took from the order to ready, of each that became so under our eyes."""
        memory = self._memory.setdefault(told.pool.name, _Memory())
        if told.seen.blind:
            return
        ready = {worker.launch: worker for worker in told.seen.workers if worker.launch and worker.phase is Phase.READY}
        if memory.ready is not None:
            for name in ready.keys() - memory.ready:
                try:
                    await self._store.note_start(told.pool.name, int(ready[name].age_s * 1000))
                except STORE_FAULT:
                    return
        memory.ready = (memory.ready or set()) | ready.keys()


def _part(orders: Orders, pools: list[Pool], launcher: LauncherName) -> Orders:
    """The orders of one launcher's pools."""
    names = {pool.name for pool in pools if pool.launcher is launcher}
    return replace(orders, pools=tuple(each for each in orders.pools if each.pool in names))


def _record(told: _Told, epoch: int, now_ms: int, *, dry_run: bool) -> DecisionRecord:
    seen, decision, policy = told.seen, told.decision, told.pool.policy
    return DecisionRecord(
        at_ms=now_ms,
        pool=told.pool.name,
        model=told.pool.model,
        action=decision.action,
        from_workers=seen.count(Phase.STARTING, Phase.LOADING, Phase.READY),
        to_workers=decision.desired,
        desired_raw=round(decision.raw, 2),
        bounds=(policy.min, policy.max),
        policy=decision.policy,
        reason=decision.reason,
        inputs={
            "waiting": seen.waiting,
            "waiting_tokens": seen.waiting_tokens,
            "oldest_wait_s": round(seen.oldest_wait_s, 1),
            "running": seen.running,
            "ready": seen.count(Phase.READY),
            "starting": seen.count(Phase.STARTING, Phase.LOADING),
            "draining": seen.count(Phase.DRAINING),
            "failed": seen.count(Phase.FAILED),
            "tokens_per_s_each": round(seen.tokens_per_s_each, 1),
            "cold_start_p90_s": round(seen.cold_start_s[1], 1) if seen.cold_start_s else None,
            **({"ttft_p95_s": round(seen.ttft_p95_s, 2)} if seen.ttft_p95_s is not None else {}),
        },
        limits=decision.limits,
        dry_run=dry_run,
        epoch=epoch,
    )


def _new_launch_id() -> str:
    return f"l-{secrets.token_hex(4)}"
