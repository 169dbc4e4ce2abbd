"""Looking at the queue without changing it: records, logs, lines, counters.

Never here: a write. What is read is read strictly: a record that cannot be read is an error that names its key, and in
a list it is passed over with a line in the log, so that it does not hide the others.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from dispatch import messages as m
from dispatch.batching import Batched
from dispatch.dead_letters import DeadLetter, dead_letter_from
from dispatch.entries import log_entries, older_log_entries
from dispatch.errors import PenstockError
from dispatch.keys import ShardKeys
from dispatch.records import Ending, QueueLine, QueueStats, RequestRecord, Tombstone, ending_from, record_from, unreadable
from dispatch.states import ENDINGS, Priority, RequestState
from dispatch.webhooks import Webhook, webhook_from

POSITION_SCAN = 200
_ENDING = ("state", "asked", "what", "grant", "retry_of", "begun_at", "first_output_at", "ended_at")
_PAGE = 100
_log = logging.getLogger("penstock.dispatch")


class Looking:
    """The reading half of the queue.

    `wait_replica_ms`: what is asked with `sure=True` is answered only when the replicas have what the answer says. So no master
    that was replaced says it, and no failover takes it back. Else, or when they are late, it raises faults.NotReplicated.
    """

    def __init__(self, redis: Redis, shard_keys: ShardKeys, *, wait_replica_ms: int = 0) -> None:
        # redis-py types a reply as the union of all protocols' shapes; redis_client pins one, so the shapes here are known.
        self._redis: Any = redis
        self._batched = Batched(redis)
        self._keys = shard_keys
        # What is promised to a client goes its own way: nothing else waits for the replicas with it.
        self.replicated = bool(wait_replica_ms)
        self._promised = (
            Batched(redis, wait_replica_ms=wait_replica_ms, wait_key=shard_keys.waited) if wait_replica_ms else self._batched
        )

    async def record(self, request: str, *, sure: bool = False) -> RequestRecord | None:
        """A request's stored hash, or None."""
        asked = self._promised if sure else self._batched
        fields: Mapping[bytes, bytes] = await asked.execute("HGETALL", self._keys.request(request))
        return record_from(request, fields, self._keys.request(request)) if fields else None

    async def ending(self, request: str) -> Ending | None:
        """How a request ended; None if it goes on or is not known. Cheaper than its record."""
        key = self._keys.request(request)
        stored = await self._batched.execute("HMGET", key, *_ENDING)
        if stored[0] is None or RequestState(stored[0].decode()) not in ENDINGS:
            return None
        if stored[1] is None:  # of version 1
            record = await self.record(request)
            return None if record is None else record.ending
        found = {name.encode(): value for name, value in zip(_ENDING, stored, strict=True) if value is not None}
        return ending_from(request, found, key)

    async def input(self, request: str) -> m.InferenceRequest | None:
        """What was asked, as long as it is kept."""
        stored = await self._batched.execute("GET", self._keys.input(request))
        return None if stored is None else m.decode(stored, m.InferenceRequest, self._keys.input(request))

    async def stands(self, request: str, chain: str) -> bool:
        """Whether the end with that chain is the request's end, also after a failover; surely."""
        state, found = await self._promised.execute("HMGET", self._keys.request(request), "state", "chain")
        if state is None:
            return await self.tombstone(request, sure=True) is not None
        return RequestState(state.decode()) in ENDINGS and found == chain.encode()

    async def tombstone(self, request: str, *, sure: bool = False) -> Tombstone | None:
        """How a request ended that may no longer be kept, and whose it was; None if there is no memory of it."""
        asked = self._promised if sure else self._batched
        stored = await asked.execute("GET", self._keys.tombstone(request))
        if stored is None:
            return None
        state, _, tenant = stored.decode().partition(" ")
        return Tombstone(RequestState(state), tenant)

    async def whereabouts(self, requests: Sequence[str]) -> list[RequestState | None]:
        """The state of each, by its record or else its tombstone; None where nothing is known of it."""
        asked = (self._batched.execute("HGET", self._keys.request(request), "state") for request in requests)
        found: list[RequestState | None] = []
        for request, state in zip(requests, await asyncio.gather(*asked), strict=True):
            if state is None:
                stone = await self.tombstone(request)
                found.append(None if stone is None else stone.state)
            else:
                found.append(RequestState(state.decode()))
        return found

    async def webhook(self, record: RequestRecord) -> Webhook | None:
        """What became of telling a request's ending; None if nobody is to be told, or it goes on."""
        if not record.webhook or record.state not in ENDINGS:
            return None
        key = self._keys.webhook(record.id)
        fields: Mapping[bytes, bytes] = await self._batched.execute("HGETALL", key)
        return webhook_from(record.id, fields, key) if fields else None

    async def output(self, request: str) -> list[m.LogEntry]:
        """The whole log so far."""
        return await read_log(self._redis, self._keys.output(request), request)

    async def position(self, record: RequestRecord, scan: int = POSITION_SCAN) -> int | None:
        """How many will be looked at before it, + 1; None if it does not wait or stands further back in its line than `scan`.

        Clients ask this again and again while they wait: it must stay cheap however long the line is.
        """
        if record.state is not RequestState.QUEUED:
            return None
        ahead = 0
        for priority in Priority:
            for line in self._keys.lines(record.model, priority):
                if priority is not record.priority:
                    ahead += await self._redis.xlen(line)
                    continue
                for place, (_, fields) in enumerate(await self._redis.xrange(line, count=scan)):
                    if fields.get(b"id") == record.id.encode():
                        return ahead + place + 1
                ahead += await self._redis.xlen(line)
            if priority is record.priority:
                break
        return None

    async def waiting(self, model: str, priority: Priority | None = None) -> list[str]:
        """The ids of all that waits now, by priority and age."""
        ids: list[str] = []
        for each in Priority if priority is None else (priority,):
            for line in self._keys.lines(model, each):
                ids += [f[b"id"].decode() for _, f in await self._redis.xrange(line) if b"id" in f]
        return ids

    async def dead_letters(self, *, before: str = "") -> AsyncIterator[DeadLetter]:
        """Newest first; `before` goes on from an entry (exclusive)."""
        upper = f"({before}" if before else "+"
        while page := await self._redis.xrevrange(self._keys.dead, upper, "-", count=_PAGE):
            for raw_id, fields in page:
                letter = dead_letter_from(raw_id, fields)
                if letter is not None:
                    yield letter
            upper = f"({page[-1][0].decode()}"

    async def held(self, worker: str) -> list[str]:
        """What an incarnation of a worker holds."""
        return [i.decode() for i in await self._redis.hkeys(self._keys.held(worker))]

    async def list_requests(self, *, before: tuple[int, str] | None = None) -> AsyncIterator[RequestRecord]:
        """Newest first; `before` goes on from a row, (created_at_ms, id), exclusive. (ms, ""): from before that moment.

        What arrives meanwhile is newer and shifts nothing; a record that cannot be read is passed over, and logged.
        """
        damaged = 0
        try:
            async for ids in self._listed(before):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for request in ids:
                        pipe.hgetall(self._keys.request(request))
                    hashes = await pipe.execute(raise_on_error=False)
                for request, fields in zip(ids, hashes, strict=True):
                    try:
                        if isinstance(fields, ResponseError):
                            raise unreadable(self._keys.request(request), fields) from fields
                        if isinstance(fields, Exception):
                            raise fields
                        if fields:
                            yield record_from(request, fields, self._keys.request(request))
                    except PenstockError as error:
                        damaged += 1
                        if damaged == 1:
                            _log.warning("Pass over a record that cannot be read", extra={"error": error.message})
        finally:
            if damaged > 1:
                _log.warning("Passed over records that cannot be read", extra={"records": damaged})

    async def _listed(self, before: tuple[int, str] | None) -> AsyncIterator[list[str]]:
        """Pages of ids, newest first; of one moment the greater id first, as Redis sorts them."""
        last, ties = before, 0
        while True:
            upper = "+inf" if last is None else last[0]
            page = await self._redis.zrange(
                self._keys.requests, upper, "-inf", desc=True, withscores=True, byscore=True, offset=ties, num=_PAGE
            )
            if not page:
                return
            rows = [(int(score), raw.decode()) for raw, score in page]
            found = [row for row in rows if last is None or row < last]
            if found:
                last, ties = found[-1], 0
                yield [request for _, request in found]
            else:  # more of one moment than a page holds
                ties += len(page)

    async def stats(self, model: str) -> QueueStats:
        """A model's lines and counters."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for priority in Priority:
                for line in self._keys.lines(model, priority):
                    pipe.xlen(line)
                    pipe.xrange(line, count=1)
            pipe.hgetall(self._keys.stats(model))
            pipe.sismember(self._keys.paused, model)
            pipe.scard(self._keys.leases(model))
            pipe.zcard(self._keys.rooms(model))
            pipe.time()
            *lines, totals, paused, running, parked, time = await pipe.execute()
        now_ms = time[0] * 1000 + time[1] // 1000
        found = []
        for n, priority in enumerate(Priority):
            here = lines[6 * n : 6 * n + 6]
            since = [int(entries[0][0].split(b"-")[0]) for entries in here[1::2] if entries]
            oldest = max(0, now_ms - min(since)) if since else 0
            found.append(QueueLine(model, priority, sum(here[::2]), oldest))
        return QueueStats(
            model=model,
            lines=tuple(found),
            paused=bool(paused),
            running=running,
            parked=parked,
            totals={k.decode(): int(v) for k, v in totals.items()},
        )


async def read_log(redis: Any, key: str, request: str) -> list[m.LogEntry]:
    """A whole output log. Raises PenstockError("bad_record")."""
    try:
        return log_entries(request, await redis.lrange(key, 0, -1))
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
    return older_log_entries(request, await redis.xrange(key))
