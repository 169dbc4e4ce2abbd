"""What the autoscaler, its agents and people keep in Redis: who leads, orders, reports, decisions, overrides.

What a leader writes goes through one script that refuses an older epoch. Never here: what is decided, who is started.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis

from dispatch import keys
from dispatch.batching import Batched
from dispatch.errors import PenstockError
from dispatch.messages import decode, encode
from dispatch.scaling import Action, DecisionRecord, HostReport, Leadership, Orders, PoolOverride, PoolStatus
from dispatch.scripts import compose_scale

_STARTS_KEPT = 50
_STARTS_TTL_S = 30 * 86_400
_PAGE = 100
_log = logging.getLogger("penstock.dispatch")
_T = TypeVar("_T")


class ScaleStore:
    """The autoscaler's part of Redis. `now` replaces Redis's clock for tests (ms)."""

    def __init__(self, redis: Redis, *, now: Callable[[], int] | None = None) -> None:
        # See looking.py: redis-py's reply types are unions that our pinned protocol never needs.
        self._redis: Any = redis
        self._batched = Batched(redis)
        self._now = now

    async def _run(self, name: str, group: str, rest: tuple[str | int, ...] = (), **values: str | int | float | bytes) -> Any:
        now = self._now() if self._now else ""
        return await compose_scale()[name](self._batched, keys.scale_leader(group), rest, {**values, "now": now})

    # ---- who leads

    async def lead(self, group: str, who: str, ttl_ms: int) -> Leadership:
        """Take or keep the lease of a group, if nobody else has it."""
        leader, epoch = await self._run("lead", group, who=who, ttl_ms=ttl_ms)
        return Leadership(leader.decode(), epoch, leader.decode() == who)

    async def resign(self, group: str, who: str) -> bool:
        """Leave the lease to the next one at once."""
        return bool(await self._run("resign", group, who=who))

    async def leader(self, group: str) -> Leadership:
        """Who leads, or led last: `leads` says whether the lease still stands."""
        leader, epoch, until = await self._redis.hmget(keys.scale_leader(group), "id", "epoch", "until")
        return Leadership((leader or b"").decode(), int(epoch or 0), int(until or 0) > await self.now_ms())

    async def now_ms(self) -> int:
        """Redis's clock."""
        if self._now:
            return self._now()
        seconds, micros = await self._redis.time()
        return int(seconds * 1000 + micros // 1000)

    # ---- orders and decisions

    async def order(
        self,
        leadership: Leadership,
        group: str,
        orders: Orders | None,
        told: Sequence[tuple[PoolStatus, DecisionRecord | None]],
        *,
        keep: int,
    ) -> bool:
        """Write what one tick decided: all of it, or nothing when another leader has taken over (False).

        Each pool told of counts as one decision; its record is None where the log says the same already.
        """
        rest: list[Any] = []
        for status, record in told:
            rest += [status.pool, status.decided.action.value, encode(status), encode(record) if record else ""]
        reply = await self._run(
            "order",
            group,
            tuple(rest),
            who=leadership.leader,
            epoch=leadership.epoch,
            orders=encode(orders) if orders else "",
            keep=keep,
        )
        return bool(reply == b"ok")

    async def orders(self, group: str) -> Orders:
        """A group's desired state; of epoch 0 when there is none yet."""
        stored = await self._redis.get(keys.scale_orders(group))
        return decode(stored, Orders, keys.scale_orders(group)) if stored else Orders(group, 0)

    async def orders_in(self, group: str) -> tuple[Orders, str]:
        """The same, and in which history of its data the server has them: another one may have forgotten what was written."""
        async with self._redis.pipeline(transaction=False) as pipe:  # one connection, so one server
            pipe.get(keys.scale_orders(group))
            pipe.info("server", "replication")
            stored, info = await pipe.execute()
        orders = decode(stored, Orders, keys.scale_orders(group)) if stored else Orders(group, 0)
        return orders, f"{info.get('run_id', '')} {info.get('master_replid', '')}"

    async def statuses(self) -> dict[str, PoolStatus]:
        """The last word on every pool, by name."""
        found = await self._redis.hgetall(keys.SCALE_STATUS)
        return _decoded(found, PoolStatus, keys.SCALE_STATUS)

    async def counts(self) -> dict[tuple[str, str], int]:
        """How many decisions there were, by pool and action."""
        found = await self._redis.hgetall(keys.SCALE_COUNTS)
        return {(pool, action): int(n) for name, n in found.items() for pool, _, action in [name.decode().rpartition(" ")]}

    async def forget_pool(self, pool: str) -> None:
        """A pool that is no more."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hdel(keys.SCALE_STATUS, pool)
            pipe.hdel(keys.SCALE_COUNTS, *(f"{pool} {action}" for action in Action))
            pipe.hdel(keys.SCALE_OVERRIDES, pool)
            await pipe.execute()

    async def note_dry(self, records: Sequence[DecisionRecord], *, keep: int) -> None:
        """Decisions of a rehearsal: entries of the log that say so. Whoever leads is not asked."""
        for record in records:
            fields = {"pool": record.pool, "d": encode(record)}
            await self._redis.xadd(keys.SCALE_LOG, fields, maxlen=keep, approximate=True)

    async def decisions(self, pool: str | None = None, *, before: str = "") -> AsyncIterator[tuple[str, DecisionRecord]]:
        """Entry id and decision, newest first; `before` goes on from an entry (exclusive). What cannot be read is passed over."""
        upper = f"({before}" if before else "+"
        while page := await self._redis.xrevrange(keys.SCALE_LOG, upper, "-", count=_PAGE):
            for raw_id, fields in page:
                if pool is None or fields.get(b"pool") == pool.encode():
                    record = _or_none(fields.get(b"d", b""), DecisionRecord, f"{keys.SCALE_LOG} {raw_id.decode()}")
                    if record is not None:
                        yield raw_id.decode(), record
            upper = f"({page[-1][0].decode()}"

    # ---- what people set

    async def overrides(self) -> dict[str, PoolOverride]:
        """By pool. One that cannot be read is passed over: it must not keep the other pools from being scaled."""
        found = await self._redis.hgetall(keys.SCALE_OVERRIDES)
        read = {n.decode(): _or_none(v, PoolOverride, f"{keys.SCALE_OVERRIDES} {n.decode()}") for n, v in sorted(found.items())}
        return {name: override for name, override in read.items() if override is not None}

    async def override(self, pool: str, value: PoolOverride | None) -> None:
        """Set it whole; None: as in the settings again."""
        if value is None or value == PoolOverride():
            await self._redis.hdel(keys.SCALE_OVERRIDES, pool)
        else:
            await self._redis.hset(keys.SCALE_OVERRIDES, pool, encode(value))

    async def change_override(self, pool: str, change: Callable[[PoolOverride], PoolOverride]) -> PoolOverride | None:
        """Set what `change` makes of what stands, and return it: two people at once do not undo each other."""

        async def store(pipe: Any) -> PoolOverride:
            stored = await pipe.hget(keys.SCALE_OVERRIDES, pool)
            new = change(decode(stored, PoolOverride, keys.SCALE_OVERRIDES) if stored else PoolOverride())
            pipe.multi()
            if new == PoolOverride():
                pipe.hdel(keys.SCALE_OVERRIDES, pool)
            else:
                pipe.hset(keys.SCALE_OVERRIDES, pool, encode(new))
            return new

        new: PoolOverride = await self._redis.transaction(store, keys.SCALE_OVERRIDES, value_from_callable=True)
        return None if new == PoolOverride() else new

    # ---- hosts

    async def announce(self, report: HostReport, ttl_ms: int) -> str:
        """What an agent says of its host. If another agent's report stands for a host of that name: that agent, and nothing is
        written."""
        key = keys.scale_host(report.host)

        async def say(pipe: Any) -> str:
            other = _agent_of(await pipe.get(key))
            pipe.multi()
            if other not in ("", report.agent):
                return other
            pipe.set(key, encode(report), px=ttl_ms)
            pipe.sadd(keys.SCALE_HOSTS, report.host)
            return ""

        other: str = await self._redis.transaction(say, key, value_from_callable=True)
        return other

    async def host_agent(self, host: str) -> str:
        """The agent whose report stands for that host; "" if none does."""
        return _agent_of(await self._redis.get(keys.scale_host(host)))

    async def withdraw(self, host: str, agent: str = "") -> None:
        """An agent's last word; with `agent`, only if the report is of that one."""
        key = keys.scale_host(host)

        async def end(pipe: Any) -> None:
            found = _agent_of(await pipe.get(key))
            pipe.multi()
            if agent in ("", found):
                pipe.delete(key)

        await self._redis.transaction(end, key)

    async def hosts(self) -> list[HostReport]:
        """Every host whose report stands, by name; forgets the others."""
        names = sorted(n.decode() for n in await self._redis.smembers(keys.SCALE_HOSTS))
        if not names:
            return []
        found = await self._redis.mget([keys.scale_host(n) for n in names])
        gone = [n for n, stored in zip(names, found, strict=True) if stored is None]
        if gone:
            await self._redis.srem(keys.SCALE_HOSTS, *gone)
        return [decode(s, HostReport, keys.scale_host(n)) for n, s in zip(names, found, strict=True) if s is not None]

    # ---- cold starts

    async def note_start(self, pool: str, took_ms: int) -> None:
        """A worker of that pool was ready so long after it was ordered."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.lpush(keys.scale_starts(pool), took_ms)
            pipe.ltrim(keys.scale_starts(pool), 0, _STARTS_KEPT - 1)
            pipe.expire(keys.scale_starts(pool), _STARTS_TTL_S)
            await pipe.execute()

    async def starts(self, pool: str) -> list[int]:
        """The last cold starts, newest first (ms)."""
        return [int(n) for n in await self._redis.lrange(keys.scale_starts(pool), 0, -1)]


def _decoded(found: Mapping[bytes, bytes], kind: type[_T], what: str) -> dict[str, _T]:
    return {name.decode(): decode(stored, kind, f"{what} {name.decode()}") for name, stored in sorted(found.items())}


def _or_none(stored: bytes, kind: type[_T], what: str) -> _T | None:
    try:
        return decode(stored, kind, what)
    except PenstockError as error:
        _log.warning("Pass over a record that cannot be read", extra={"error": error.message})
        return None


def _agent_of(stored: bytes | None) -> str:
    """Who wrote a host's report; "" also for one that cannot be read: it is written over."""
    report = _or_none(stored, HostReport, "a host's report") if stored else None
    return report.agent if report else ""
