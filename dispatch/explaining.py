"""Reading why a request waits: its place, what is ahead, and each worker of its model. Three round trips, never a write.

Never here: judging it (reasons.py), words (gateway/explained.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from dispatch import keys
from dispatch.entries import log_entries
from dispatch.keys import ShardKeys
from dispatch.looking import POSITION_SCAN
from dispatch.messages import decode
from dispatch.reasons import Ahead, SeenWorker
from dispatch.records import RequestRecord
from dispatch.reports import Heartbeat
from dispatch.states import Priority, WorkerState

_GONE_AFTER_MS = 60_000
"""A worker without a heartbeat is told of for so long after it was last heard of."""

_LOOKED_AT = 128
"""So many pulls are read as Redis has them: those with the most room first. Of others the last heartbeat tells enough."""

_FIELDS = (
    "model",
    "limit",
    "slots",
    "used",
    "held",
    "seen",
    "accepting",
    "barred",
    "alone",
    "pin",
    "pin_cost",
    "weight",
    "prefill_weight",
    "prefill",
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a waiting request stands in. `position` None: it stands further back than is looked, or does not wait any more."""

    now_ms: int
    paused: bool
    position: int | None
    ahead: Ahead
    backlog: int
    workers: tuple[SeenWorker, ...]


class Explaining:
    """The reading for explanations, in one shard."""

    def __init__(self, redis: Redis, shard_keys: ShardKeys) -> None:
        # See looking.py: redis-py's reply types are unions that our pinned protocol never needs.
        self._redis: Any = redis
        self._keys = shard_keys

    async def surroundings(self, record: RequestRecord) -> Surroundings:
        """Where a waiting request stands now, and all workers of its model."""
        lines = [(priority, line) for priority in Priority for line in self._keys.lines(record.model, priority)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for _, line in lines:
                pipe.xlen(line)
                pipe.xrange(line, count=POSITION_SCAN)
            pipe.sismember(self._keys.paused, record.model)
            pipe.time()
            pipe.zrange(keys.WORKERS, 0, -1)
            pipe.zrange(self._keys.rooms(record.model), 0, _LOOKED_AT - 1, desc=True)
            *looked, paused, time, listed, roomy = await pipe.execute()
        now_ms = time[0] * 1000 + time[1] // 1000
        before = [priority for priority in Priority if _rank(priority) <= _rank(record.priority)]
        ahead, position = _ahead(
            record.id, [(looked[2 * n], looked[2 * n + 1]) for n, (priority, _) in enumerate(lines) if priority in before]
        )
        # Who keeps room for it comes first, so that it is told surely.
        first = (record.pinned, record.reserved, *(raw.decode() for raw in roomy))
        ids = list(dict.fromkeys(i for i in (*first, *sorted(raw.decode() for raw in listed)) if i))
        return Surroundings(
            now_ms=now_ms,
            paused=bool(paused),
            position=position,
            ahead=ahead,
            backlog=sum(looked[: 2 * len(lines) : 2]),
            workers=tuple(await self._workers(record.model, ids, now_ms)),
        )

    async def end(self, record: RequestRecord) -> bytes | None:
        """The data of an ended request's last entry."""
        key = self._keys.output(record.id)
        if await self._redis.type(key) == b"stream":  # of version 1
            found = await self._redis.xrevrange(key, count=1)
            data: bytes | None = found[0][1].get(b"d") if found else None
            return data
        last = await self._redis.lindex(key, -1)
        return log_entries(record.id, [last], first_seq=record.seq)[0].data if last else None

    async def now_ms(self) -> int:
        """Redis's clock."""
        seconds, micros = await self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def _workers(self, model: str, ids: Sequence[str], now_ms: int) -> list[SeenWorker]:
        if not ids:
            return []
        stored = await self._redis.mget([keys.heartbeat(i) for i in ids])
        beats = {i: decode(b, Heartbeat, keys.heartbeat(i)) for i, b in zip(ids, stored, strict=True) if b is not None}
        # Of those without a heartbeat their pull tells whose they are.
        ours = [i for i in ids if i not in beats or beats[i].model == model]
        async with self._redis.pipeline(transaction=False) as pipe:
            for worker in ours[:_LOOKED_AT]:
                pipe.hmget(self._keys.worker(worker), _FIELDS)
            pulls = await pipe.execute()
        found = [_by_heartbeat(beats[worker]) for worker in ours[_LOOKED_AT:] if worker in beats]
        for worker, values in zip(ours, pulls, strict=False):
            pull = {name: value.decode() for name, value in zip(_FIELDS, values, strict=True) if value is not None}
            beat = beats.get(worker)
            seen = int(float(pull.get("seen", "0")))
            if beat is None and (pull.get("model") != model or now_ms - seen > _GONE_AFTER_MS):
                continue
            found.append(_seen(worker, pull, beat, now_ms))
        return found


def _by_heartbeat(beat: Heartbeat) -> SeenWorker:
    return SeenWorker(
        id=beat.id,
        state=beat.state,
        progress=beat.progress,
        speed=beat.tokens_per_s or beat.weight,
        limit_tokens=beat.limit_tokens,
        used_tokens=beat.held_tokens,
        slots=beat.slots,
        held=beat.held,
        unseen_ms=0,
        accepting=beat.state is WorkerState.READY,
    )


def _seen(worker: str, pull: dict[str, str], beat: Heartbeat | None, now_ms: int) -> SeenWorker:
    seen = int(float(pull.get("seen", "0")))
    weight = float(pull.get("weight", "0"))
    return SeenWorker(
        id=worker,
        state=beat.state if beat else None,
        progress=beat.progress if beat else "",
        speed=beat.tokens_per_s if beat and beat.tokens_per_s > 0 else weight,
        limit_tokens=int(float(pull["limit"])) if "limit" in pull else None,
        used_tokens=int(float(pull.get("used", "0"))),
        slots=int(float(pull.get("slots", "0"))),
        held=int(float(pull.get("held", "0"))),
        unseen_ms=max(0, now_ms - seen) if seen else None,
        accepting=pull.get("accepting") == "1",
        barred="barred" in pull,
        alone=pull.get("alone", ""),
        pin=pull.get("pin", ""),
        pin_tokens=int(float(pull.get("pin_cost", "0"))),
        weight=weight,
        prefill_weight=float(pull.get("prefill_weight", "0")),
        prefill_tokens=int(float(pull.get("prefill", "0"))),
    )


def _ahead(request: str, lines: Sequence[tuple[int, Sequence[Any]]]) -> tuple[Ahead, int | None]:
    """What stands before a request in these lines, and its place."""
    requests, tokens = 0, 0
    for length, entries in lines:
        costs: list[int] = []
        for _, fields in entries:
            if fields.get(b"id") == request.encode():
                return Ahead(requests + len(costs), tokens + sum(costs)), requests + len(costs) + 1
            costs.append(_tokens(fields.get(b"cost", b"0")))
        requests += length
        tokens += sum(costs) * length // len(costs) if costs else 0
    return Ahead(requests, tokens), None


def _tokens(cost: bytes) -> int:
    """What nobody of ours wrote into a line counts for nothing, as the scripts read it."""
    return int(cost) if cost.isdigit() else 0


def _rank(priority: Priority) -> int:
    return list(Priority).index(priority)
