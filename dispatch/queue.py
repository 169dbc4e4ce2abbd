"""The queue's laws as typed calls: one method, one script, one transition.

Every write may be repeated after a lost reply. Never here: what to do about an answer (gateway, worker), Lua (scripts/),
looking without changing anything (looking.py).
"""

import random
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from dispatch import messages as m
from dispatch.dead_letters import DeadLetter
from dispatch.entries import feed_entries, inbox_word, log_entries
from dispatch.keys import ShardKeys
from dispatch.looking import Looking
from dispatch.records import plain_fields
from dispatch.rules import QueueRules
from dispatch.scripts import Script, compose_all
from dispatch.states import Priority, RequestState
from dispatch.wire import Wires

_PROMISES = frozenset({"enqueue", "cancel", "finish"})


class Queue(Looking):
    """The laws on one shard. `now` fixes the clock for tests (ms); by default only Redis's own clock counts.

    `redis` answers bytes (dispatch.redis_client). `scripts` is for the tests that plant bugs. `wait_replica_ms`: an
    enqueue, a cancel and a finish are answered only once the replicas have them; else they raise faults.NotReplicated.
    """

    def __init__(
        self,
        redis: Redis,
        rules: QueueRules,
        *,
        shard: str = "s0",
        now: Callable[[], int] | None = None,
        scripts: Mapping[str, Script] | None = None,
        wait_replica_ms: int = 0,
    ) -> None:
        super().__init__(redis, ShardKeys(shard), wait_replica_ms=wait_replica_ms)
        self.rules = rules
        self.shard = shard
        self._now = now
        self._scripts = scripts or compose_all(rules)
        self._wires: Wires = self._redis.connection_pool.wires

    def _run(
        self, name: str, rest: tuple[str | int, ...] = (), *, sure: bool = False, **values: str | int | float | bytes
    ) -> Awaitable[Any]:
        values["now"] = self._now() if self._now else ""
        batched = self._promised if sure or name in _PROMISES else self._batched
        return self._scripts[name](batched, self._keys.timers, rest, values)

    # ---- clients' side

    async def enqueue(self, new: m.NewRequest) -> m.Enqueued:
        """Store a request; it is granted at once or waits. Repeating it with the same id changes nothing."""
        reply: bytes = await self._run(
            "enqueue",
            salt=_salt(),
            id=new.id,
            model=new.model,
            kind=new.kind,
            priority=new.priority,
            tenant=new.tenant,
            cost=new.cost_tokens,
            input=new.input,
            deadline_ms=new.deadline_ms,
            max_attempts=new.max_attempts,
            on_disconnect=new.on_disconnect,
            reader=new.reader,
            prompt=new.prompt_tokens,
            strategy=new.strategy,
            more=new.more,
        )
        status, request, state, position, backlog = reply.decode().split(" ")
        return m.Enqueued(m.EnqueueStatus(status), request, RequestState(state), int(position), int(backlog))

    async def cancel(self, request: str, reason: str = "cancelled by the client") -> RequestState | None:
        """End it now. The state it ended in (its own, if it had ended before); None if unknown."""
        state = await self._run("cancel", salt=_salt(), id=request, message=reason)
        return RequestState(state.decode()) if state else None

    async def attach(
        self, request: str, gateway: str, *, after_seq: int = 0, after_chain: str = "", sure: bool = False
    ) -> m.Attached:
        """Register `gateway` as a reader and return the log after `after_seq`, in one step; the feed brings the rest.

        `gateway` "" only reads. `after_chain` "" trusts the seq.
        """
        status, state, live, entries = await self._run(
            "attach", sure=sure, id=request, gateway=gateway, after_seq=after_seq, after_chain=after_chain
        )
        log = tuple(log_entries(request, entries, first_seq=1 if status == b"rewind" else after_seq + 1))
        return m.Attached(m.AttachStatus(status.decode()), RequestState(state.decode()), live == 1, log)

    async def detach(self, request: str, gateway: str, *, then_continue: bool = False) -> None:
        """`gateway` reads it no more. With nobody left and on_disconnect=cancel it is cancelled after the grace;
        `then_continue` turns it into on_disconnect=continue first."""
        await self._run("detach", id=request, gateway=gateway, then_continue=int(then_continue))

    async def keep_reading(self, gateway: str) -> None:
        """Renew the reader lease of all that `gateway` reads; call it several times a lease."""
        await self._run("keep_reading", gateway=gateway)

    async def read_feed(
        self, gateway: str, after: str, *, block_ms: int, count: int = 1000
    ) -> tuple[str, list[m.LogEntry | None]]:
        """The feed's entries after stream id `after` ("0" at first), and the id to go on from.

        A None entry means the feed was cut: attach everything anew.
        """
        entries: list[m.LogEntry | None] = []
        for raw_id, fields in await self._next(self._keys.feed(gateway), after, count, block_ms):
            after = raw_id.decode()
            entries += feed_entries(fields)
        return after, entries

    async def trim_feed(self, gateway: str, through: str) -> None:
        """Forget what was read."""
        await self._redis.xtrim(self._keys.feed(gateway), minid=through, approximate=False)

    # ---- workers' side

    async def park(self, offer: m.Offer) -> m.Parked:
        """Say what a worker can hold; what waits and fits is granted to it."""
        barred, room, held, granted = await self._run(
            "park",
            salt=_salt(),
            worker=offer.worker,
            model=offer.model,
            limit=offer.limit_tokens,
            slots=offer.slots,
            weight=offer.weight,
            accepting=int(offer.accepting),
            prefill_weight=offer.prefill_weight,
            memory=offer.memory,
            utilisation=offer.utilisation,
            waiting=offer.waiting,
        )
        return m.Parked(barred == 1, room, held, granted)

    async def read_inbox(self, worker: str, after: str, *, block_ms: int | None) -> tuple[str, list[m.Grant | m.Stop]]:
        """A worker's one blocking read: grants and stops after stream id `after`, and the next id. None: it does not wait."""
        words: list[m.Grant | m.Stop] = []
        for raw_id, fields in await self._next(self._keys.inbox(worker), after, 100, block_ms):
            after = raw_id.decode()
            word = inbox_word(worker, after, fields)
            if word is not None:
                words.append(word)
        return after, words

    async def _next(self, stream: str, after: str, count: int, block_ms: int | None) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """What stands in a stream after an id. Waits for something, so long at most; None: not at all."""
        wire = self._wires.take()
        block = () if block_ms is None else ("BLOCK", block_ms)
        try:
            (found,) = await wire.exchange([("XREAD", "COUNT", count, *block, "STREAMS", stream, after)])
        finally:
            await self._wires.give_back(wire)
        if isinstance(found, Exception):
            raise found
        return [(id, dict(zip(fields[::2], fields[1::2], strict=True))) for _, got in found or () for id, fields in got]

    async def begin(self, grant: m.Grant) -> m.Begun | None:
        """Make the grant a full lease; None when fenced. May be repeated.

        Raises PenstockError("bad_record") when the stored input cannot be read.
        """
        reply = await self._run("begin", worker=grant.worker, id=grant.request, attempt=grant.attempt, nonce=grant.nonce)
        if reply == b"fenced":
            return None
        stored, words = reply
        seq, attempt, deadline = map(int, words.split(b" "))
        request = m.decode(stored, m.InferenceRequest, self._keys.input(grant.request))
        return m.Begun(request, seq, attempt, deadline)

    async def append(self, grant: m.Grant, seq: int, data: bytes) -> m.WriteStatus:
        """Write the next chunk of an answer."""
        reply = await self._run(
            "append", salt=_salt(), id=grant.request, attempt=grant.attempt, nonce=grant.nonce, seq=seq, data=data
        )
        return m.WriteStatus(reply.decode())

    async def finish(
        self,
        grant: m.Grant,
        seq: int,
        last: bytes,
        detail: bytes,
        *,
        state: RequestState = RequestState.COMPLETED,
    ) -> m.WriteStatus:
        """End it as completed or failed. `last` is the last chunk's data, b"" for none; `seq` is the last appended + 1.

        `detail` is a JSON object merged into the end's data.
        """
        reply = await self._run(
            "finish",
            salt=_salt(),
            id=grant.request,
            attempt=grant.attempt,
            nonce=grant.nonce,
            seq=seq,
            last=last,
            detail=detail,
            state=state,
        )
        return m.WriteStatus(reply.decode())

    async def renew(self, worker: str, grants: Sequence[m.Grant]) -> m.Renewed:
        """Keep the leases of all a worker runs."""
        named: tuple[str | int, ...] = tuple(v for g in grants for v in (g.request, g.attempt, g.nonce))
        lost, unknown = await self._run("renew", named, worker=worker)
        return m.Renewed(
            tuple((lost[i].decode(), lost[i + 1]) for i in range(0, len(lost), 2)),
            tuple(
                m.Grant(unknown[i].decode(), worker, unknown[i + 1], unknown[i + 2].decode(), unknown[i + 3])
                for i in range(0, len(unknown), 4)
            ),
        )

    async def release(self, grant: m.Grant) -> m.WriteStatus:
        """Give it back unfinished to the head of its line; nothing charged."""
        reply = await self._run("release", salt=_salt(), id=grant.request, attempt=grant.attempt, nonce=grant.nonce)
        return m.WriteStatus(reply.decode())

    async def retry(self, grant: m.Grant, code: str, message: str) -> m.WriteStatus:
        """A retryable fault: charged; it waits with backoff, or is dead when its attempts are used up."""
        reply = await self._run(
            "retry", salt=_salt(), id=grant.request, attempt=grant.attempt, nonce=grant.nonce, code=code, message=message
        )
        return m.WriteStatus(reply.decode())

    async def reprice(self, grant: m.Grant, cost_tokens: int) -> m.WriteStatus:
        """It costs more than it was granted at: its next grant takes so much of a room. A cost never falls."""
        reply = await self._run("reprice", id=grant.request, attempt=grant.attempt, nonce=grant.nonce, cost=cost_tokens)
        return m.WriteStatus(reply.decode())

    async def abandon(self, worker: str, evidence: str, suspects: Sequence[str] = ()) -> int:
        """This incarnation is dead, by evidence: bar it and move all it held on. Returns how many moved."""
        moved: int = await self._run("abandon", tuple(suspects), salt=_salt(), worker=worker, evidence=evidence)
        return moved

    # ---- everybody's

    async def sweep(self, limit: int = 200) -> int:
        """Look at every request whose time has come; returns how many moved."""
        moved: int = await self._run("sweep", salt=_salt(), limit=limit)
        return moved

    async def pause(self, model: str, paused: bool) -> None:
        """Keep a model's waiting requests from its workers, or let them meet again."""
        await self._run("pause", salt=_salt(), model=model, paused=int(paused))

    async def forget_dead(self, letter: DeadLetter) -> bool:
        """Take a dead letter off the list; its request is kept no longer than any other that ended. Whether it was there."""
        for key in (self._keys.request, self._keys.input, self._keys.output):
            await self._batched.execute("PEXPIRE", key(letter.request), self.rules.retention_ms, "LT")
        return bool(await self._batched.execute("XDEL", self._keys.dead, letter.entry))

    async def purge(self, model: str, priority: Priority | None = None, *, tenant: str = "") -> int:
        """Cancel all that waits now, of one tenant if one is named; returns how many."""
        cancelled = 0
        for request in await self.waiting(model, priority):
            if tenant and await self._tenant_of(request) != tenant:
                continue
            state = await self.cancel(request, "its queue was purged")
            cancelled += state is RequestState.CANCELLED
        return cancelled

    async def _tenant_of(self, request: str) -> str | None:
        names = ("what", "tenant")  # the latter of version 1
        stored = await self._batched.execute("HMGET", self._keys.request(request), *names)
        found = {name.encode(): value for name, value in zip(names, stored, strict=True) if value is not None}
        return plain_fields(found).get("tenant")


_salts = random.Random(secrets.randbits(128))


def _salt() -> str:
    """Redis's own random numbers repeat in every script; nonces and jitter need better. No secret: a nonce tells grants apart."""
    return f"{_salts.getrandbits(64):016x}"
