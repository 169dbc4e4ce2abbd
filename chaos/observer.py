"""The observer: samples of what workers hold while a run lasts, and all that Redis holds at its end.

It reads past every proxy and changes nothing, but one: a worker in quarantine it sends home, as an operator would.
Never here: judgement (checker.py).
"""

import asyncio
import contextlib
import re
import signal
import time
from collections import defaultdict
from typing import Any

from chaos.scene import AWAY, Scene
from dispatch.fleet import Fleet
from dispatch.messages import LogEntry
from dispatch.records import RequestRecord
from dispatch.reports import Heartbeat
from dispatch.states import ENDINGS, Priority, WorkerState
from tests.key_leaks import leaking_keys

_EVERY_S = 0.5
_RQ = re.compile(
    r"rq:(queues|workers|workers:[^:]+|queue:[^:]+(:intermediate)?|(finished|failed|wip|deferred|scheduled|canceled):[^:]+)"
)
"""RQ's own registries: one a queue or a Penstock. Its jobs and workers are none of them."""
_PARTS = ("", ":front", ":alone")


class Observer:
    """One observer."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._ids: dict[str, set[str]] = defaultdict(set)
        self._quarantined: set[str] = set()

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                async with asyncio.timeout(2):
                    await self._sample()
            except AWAY:
                continue

    async def until_settled(self, patience_s: float) -> bool:
        """Wait until nothing unfinished is left; whether it came to that."""
        give_up_at = time.monotonic() + patience_s
        while time.monotonic() < give_up_at:
            try:
                async with asyncio.timeout(5):
                    redis, keys = await self._scene.redis(), self._scene.keys
                    left = await redis.zcard(keys.timers)
                    leases = sum([await redis.scard(keys.leases(m)) for m in self._scene.models])
                    if not left and not leases:
                        return True
            except AWAY:
                pass
            await asyncio.sleep(0.2)
        return False

    async def until_idle(self, patience_s: float) -> None:
        """Wait until every worker that beats says it holds nothing."""
        give_up_at = time.monotonic() + patience_s
        while time.monotonic() < give_up_at:
            with contextlib.suppress(*AWAY):
                async with asyncio.timeout(5):
                    beats = await Fleet(await self._scene.redis()).workers()
                    if not any(beat.held for beat in beats):
                        return
            await asyncio.sleep(0.2)

    async def write_final(self) -> None:
        """Every request with its whole log, and the structure around them."""
        queue = await self._scene.queue()
        for role in self._scene.house.workers:
            ids = self._ids[role.name] | set(self._scene.house.incarnations(role))
            self._scene.record("workers", role=role.name, ids=sorted(ids))
        async for record in queue.list_requests():
            log = await queue.output(record.id)
            self._scene.record("final", **_record(record), log=[_entry(e) for e in log])
        self._scene.record("structure", **await self._structure())

    async def until_probed(self, patience_s: float) -> None:
        """Wait until every sim that is ready and idle was probed once more; write down how it stands then.

        A probe's moment is the worker's own clock, which may be wrong: that it is another one than before is enough.
        """
        before: dict[str, int] = {}
        give_up_at = time.monotonic() + patience_s
        while time.monotonic() < give_up_at:
            with contextlib.suppress(*AWAY):
                async with asyncio.timeout(5):
                    beats = [b for b in await Fleet(await self._scene.redis()).workers() if b.engine == "sim"]
                for beat in beats:
                    before.setdefault(beat.id, beat.probe.at_ms if beat.probe else 0)
                waiting = [b for b in beats if b.state is WorkerState.READY and b.probe and b.probe.at_ms == before[b.id]]
                if not waiting:
                    for beat in beats:
                        if beat.probe is not None:
                            self._scene.record("probed", worker=beat.id, ok=beat.probe.ok, state=beat.state.value)
                    return
            await asyncio.sleep(0.2)

    def _note(self, beat: Heartbeat) -> None:
        role = next((r for r in self._scene.house.workers if r.pid and r.pid == beat.pid), None)
        if role is None:
            return
        self._ids[role.name].add(beat.id)
        if beat.state is WorkerState.QUARANTINED and beat.id not in self._quarantined:
            self._quarantined.add(beat.id)
            self._scene.record("quarantined", role=role.name, worker=beat.id, error=beat.error)
            role.signal(signal.SIGTERM)

    async def _structure(self) -> dict[str, Any]:
        redis, keys, models = await self._scene.redis(), self._scene.keys, self._scene.models
        lines = {}
        for model in models:
            for priority in Priority:
                for part in _PARTS:
                    line, sizes = keys.queue(model, priority) + part, keys.sizes(model, priority) + part
                    lines[line], lines[sizes] = await redis.xlen(line), await redis.zcard(sizes)
        beats = await Fleet(redis).workers()
        return {
            "timers": [i.decode() for i in await redis.zrange(keys.timers, 0, 50)],
            "leases": {m: [i.decode() for i in await redis.smembers(keys.leases(m))] for m in models},
            "lines": {name: length for name, length in lines.items() if length},
            "held": {b.id: [i.decode() for i in await redis.hkeys(keys.held(b.id))] for b in beats},
            "working": {b.id: b.held for b in beats if b.held},
            "leaks": await self._leaks(redis),
            "stats": {m: _text(await redis.hgetall(keys.stats(m))) for m in models},
        }

    async def _leaks(self, redis: Any) -> list[str]:
        leaks = await leaking_keys(redis)
        if not self._scene.scaled:
            return leaks
        begun: set[str] = set()
        async for registry in redis.scan_iter("rq:wip:*"):
            begun |= {f"rq:job:{entry.decode().partition(':')[0]}" for entry in await redis.zrange(registry, 0, -1)}
        # RQ takes the TTL off a job that has begun, and gives it one again: when it is over, or else by its maintenance.
        return [key for key in leaks if key not in begun and not _RQ.fullmatch(key)]

    async def _sample(self) -> None:
        redis, keys = await self._scene.redis(), self._scene.keys
        beats = await Fleet(redis).workers()
        for beat in beats:
            self._note(beat)
            async with redis.pipeline(transaction=True) as pipe:
                pipe.hgetall(keys.worker(beat.id))
                pipe.hvals(keys.held(beat.id))
                pipe.zscore(keys.parked(beat.model), beat.id)
                for priority in Priority:
                    for sizes in (keys.sizes(beat.model, priority), keys.sizes_front(beat.model, priority)):
                        pipe.zrange(sizes, 0, 0, withscores=True)
                pipe.exists(keys.shut(beat.model))
                pipe.sismember(keys.paused, beat.model)
                offer, held, score, *smallest, closed, paused = await pipe.execute()
            if b"limit" not in offer:  # it never parked there, or was barred where a failover had forgotten its pull
                continue
            used, limit, slots = sum(int(c) for c in held), int(offer[b"limit"]), int(offer[b"slots"])
            waiting = [int(pairs[0][1]) for pairs in smallest if pairs]
            # Two lines that may meet and did not: looked at in one step, so no race explains it.
            seen_ms = time.time() * 1000 - int(offer[b"seen"])
            may_meet = (
                score is not None
                and not offer.get(b"alone")
                and len(held) + bool(offer.get(b"pin")) < slots
                and seen_ms < self._scene.rules.worker_seen_ms - 500
                and not closed  # it may be one of these that is waited for
            )
            kept = int(offer.get(b"pin_cost") or 0)
            missed = bool(may_meet and waiting and min(waiting) <= limit - used - kept and not paused)
            self._scene.record(
                "sample",
                worker=beat.id,
                pid=beat.pid,
                used=used,
                limit=limit,
                held=len(held),
                slots=slots,
                state=beat.state.value,
                missed=missed,
            )


def _record(record: RequestRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "model": record.model,
        "state": record.state.value,
        "ended": record.state in ENDINGS,
        "priority": record.priority.value,
        "attempt": record.attempt,
        "charged": record.charged,
        "crashes": record.crashes,
        "max_attempts": record.max_attempts,
        "cost": record.cost_tokens,
        "seq": record.seq,
        "chain": record.chain,
        "created_at": record.created_at_ms,
        "begun_at": record.begun_at_ms,
        "deadline_at": record.deadline_at_ms,
        "ended_at": record.ended_at_ms,
        "retry_of": record.retry_of,
        "worker": record.worker,
        "granted_at": record.granted_at_ms,
        "attempt_begun_at": record.attempt_begun_at_ms,
        "story": [(a.attempt, a.worker, a.granted_at, a.begun_at, a.left_at, a.why) for a in record.story],
    }


def _entry(entry: LogEntry) -> tuple[int, int, str, str, str]:
    return entry.seq, entry.attempt, entry.kind.value, entry.data.decode(), entry.chain


def _text(fields: dict[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in fields.items()}
