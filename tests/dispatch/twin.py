"""The real queue and the model of its laws, driven side by side; after each step all of Redis is held against both.

Also plays the part of the gateways: what they got by attach and feed must be the log.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace
from redis.asyncio import Redis

from dispatch import messages as m
from dispatch.outbox import Outbox, Verdict
from dispatch.queue import Queue
from dispatch.rules import QueueRules
from dispatch.scripts import Script
from dispatch.states import Priority, RequestState, may_become
from tests.dispatch import model as laws
from tests.dispatch.invariants import Snapshot, broken, line_order, log_of, snapshot

MODEL = "demo"
S = RequestState


class Broken(AssertionError):
    """A law or an invariant does not hold."""


def must(true: object, words: str) -> None:
    if not true:
        raise Broken(words)


class Reader:
    """A gateway: what it reads, and what it has of each."""

    def __init__(self) -> None:
        self.after = "0"
        self.views: dict[str, list[tuple[int, bytes, str]]] = {}


class Twin:
    def __init__(self, redis: Redis, rules: QueueRules, scripts: Mapping[str, Script] | None = None) -> None:
        self.redis: Any = redis
        self.rules = rules
        self.now = 1_000_000_000
        self.queue = Queue(redis, rules, now=lambda: self.now, scripts=scripts)
        self.outbox = Outbox(redis, rules, now=lambda: self.now, scripts=scripts)
        self.model = laws.Model(rules)
        self.model.now = self.now
        self.grants: dict[tuple[str, int], m.Grant] = {}
        self.readers: dict[str, Reader] = {}
        self.inboxes: dict[str, str] = {}
        self.seen = Snapshot()
        self._numbers = itertools.count(1)
        self._begun: set[tuple[str, str]] = set()

    # ---- after each step

    async def check(self) -> None:
        before, after = self.seen, await snapshot(self.redis)
        self.seen = after
        self._learn(after)
        after.begun = self._begun
        try:
            wrong = broken(after, self.rules) + self._moves(before, after) + self._unlike(after)
        except (LookupError, ValueError, TypeError) as error:
            raise Broken("what is stored cannot be read") from error
        must(not wrong, "; ".join(wrong))

    def _learn(self, s: Snapshot) -> None:
        """What the scripts draw themselves: nonces, and when a request waits for another attempt."""
        for request, r in s.of["request"].items():
            if r["state"] == "running":
                self._begun.add((r["worker"], r["inbox"]))
            key = (request, int(r["attempt"]))
            if key[1] and key not in self.grants:
                nonces = {g.nonce for g in self.grants.values()}
                must(r["nonce"] not in nonces, f"nonce {r['nonce']} was drawn before")
                self.grants[key] = m.Grant(request, r["worker"], key[1], r["nonce"], int(r["cost"]))
            law = self.model.requests.get(request)
            if law and law.state is S.WAITING and law.not_before is None and r["state"] == "waiting":
                wait = min(self.rules.backoff_ms * 2 ** (law.charged - 1), self.rules.backoff_max_ms)
                waits = int(r["not_before"]) - self.now
                must(wait // 2 <= waits <= wait * 1.5, f"{request} waits {waits} ms after {law.charged} charges")
                law.not_before = int(r["not_before"])

    @staticmethod
    def _moves(before: Snapshot, after: Snapshot) -> list[str]:
        """Each move is an arrow of the table, or arrows through the line and a new grant."""
        wrong = []
        for request, r in after.of["request"].items():
            old = before.of["request"].get(request)
            if old is None:
                continue
            was, now = S(old["state"]), S(r["state"])
            grew = r["attempt"] != old["attempt"]
            granted_between = grew and (may_become(was, S.GRANTED) or may_become(was, S.QUEUED))
            through_grant = granted_between and (now is S.GRANTED or may_become(S.GRANTED, now))
            if (was is not now or grew) and not (may_become(was, now) and not grew) and not through_grant:
                wrong.append(f"{request} went from {was} to {now}, attempt {old['attempt']} to {r['attempt']}")
        for request in before.of["request"].keys() - after.of["request"].keys():
            wrong.append(f"{request} was lost")
        return wrong

    def _unlike(self, s: Snapshot) -> list[str]:
        """Where Redis is not as the laws say."""
        law, wrong = self.model, []
        if set(law.requests) != set(s.of["request"]):
            return [f"requests are {sorted(s.of['request'])}, by the laws {sorted(law.requests)}"]
        for request, r in s.of["request"].items():
            q = law.requests[request]
            real = (r["state"], *(int(r[f]) for f in ("attempt", "charged", "crashes", "seq", "deadline")), r.get("worker", ""))
            want = (q.state, q.attempt, q.charged, q.crashes, len(q.log), q.deadline, q.worker)
            if real != want:
                wrong.append(f"{request} is {real}, by the laws {tuple(map(str, want))}")
            if not q.ended and set(r["readers"].split()) != q.readers:
                wrong.append(f"{request} has readers {r['readers']!r}, by the laws {q.readers}")
            if not q.ended and int(r["reader_look"]) != q.reader_look:
                wrong.append(f"{request} reader_look {r['reader_look']}, by the laws {q.reader_look}")
            if not q.ended and r.get("pinned", "") != q.pinned:
                wrong.append(f"{request} is pinned to {r.get('pinned')!r}, by the laws to {q.pinned!r}")
            if q.is_held and int(r["lease"]) != q.lease:
                wrong.append(f"the lease of {request} ends {r['lease']}, by the laws {q.lease}")
            entries = log_of(s.of["output"].get(request, []))
            real_log = [(kind, attempt, data if kind == "chunk" else "") for _, attempt, kind, data, _ in entries]
            if real_log != [(w.kind, w.attempt, w.data.decode()) for w in q.log]:
                wrong.append(f"the log of {request} is {real_log}, by the laws {q.log}")
        waits = [i for line in law.lines.values() for i in line]
        if line_order(s, MODEL) != waits:
            wrong.append(f"the line is {line_order(s, MODEL)}, by the laws {waits}")
        real_owed = {i: (w["ending"], w["state"], int(w["tried"])) for i, w in s.of["webhook"].items()}
        want_owed = {i: (o.ending, o.state, o.tried) for i, o in law.owed.items()}
        if real_owed != want_owed:
            wrong.append(f"webhooks are {real_owed}, by the laws {want_owed}")
        due = {i: int(float(at)) for i, at in s.one("outbox")}
        if due != {i: o.due for i, o in law.owed.items() if o.due is not None}:
            wrong.append(f"the outbox holds {due}, by the laws {law.owed}")
        parked = {worker for worker, _ in s.of["parked"].get(MODEL, [])}
        # Nobody's law: when exactly a pull that is passed over is forgotten.
        law.parked -= {w for w in law.parked if not law.is_open(w) and w not in parked}
        if parked != law.parked:
            wrong.append(f"parked are {parked}, by the laws {law.parked}")
        shut = {worker for worker, _ in s.of["shut"].get(MODEL, [])}
        law.shut -= {w for w in law.shut if not law.is_open(w) and w not in shut}
        if shut != law.shut:
            wrong.append(f"closed are {shut}, by the laws {law.shut}")
        return wrong

    async def advance(self, ms: int) -> None:
        self.now += ms
        self.model.now = self.now
        await self.check()

    def record(self, request: str) -> laws.Request:
        return self.model.requests[request]

    # ---- clients' side

    def new(self, cost: int = 10, **fields: Any) -> m.NewRequest:
        number = next(self._numbers)
        request = f"s0.{number:032x}"
        document = m.encode(m.InferenceRequest(request, MODEL, m.InputKind.CHAT, m.Sampling(10)))
        given: dict[str, Any] = {"deadline_ms": 3_600_000, **fields}
        return m.NewRequest(id=request, model=MODEL, input=document, kind=m.InputKind.CHAT, cost_tokens=cost, **given)

    async def enqueue(self, new: m.NewRequest) -> m.Enqueued:
        law = laws.Request(
            new.id, new.priority, new.cost_tokens, self.now + new.deadline_ms, new.max_attempts, new.on_disconnect, set()
        )
        law.prompt, law.strategy, law.session = new.prompt_tokens, new.strategy, new.session
        law.webhook, law.webhook_events = bool(new.webhook), frozenset(new.webhook_events.split())
        known = new.id in self.model.requests
        want = self.model.enqueue(law, reader=new.reader, key=new.idempotency, body_hash=new.body_hash)
        got = await self.queue.enqueue(new)
        must((got.status, got.id) == want, f"enqueue answers {got}, by the laws {want}")
        if got.status is m.EnqueueStatus.OK:
            q = self.model.requests[new.id]
            must(got.state == q.state, f"enqueue answers {got}, by the laws {q.state}")
            must(got.backlog == self.model.backlog(), f"enqueue counts a backlog of {got.backlog}")
            if q.state is S.QUEUED and not known:
                ahead = [i for line, ids in self.model.lines.items() for i in ids if not self._behind(line[0], new.priority)]
                must(got.position == len(ahead), f"enqueue answers position {got.position}, it is {len(ahead)}")
        if new.reader and got.status is m.EnqueueStatus.OK and not known:
            self.readers.setdefault(new.reader, Reader()).views[new.id] = []
        await self.check()
        return got

    @staticmethod
    def _behind(line: Priority, priority: Priority) -> bool:
        order = list(Priority)
        return order.index(line) > order.index(priority)

    async def cancel(self, request: str) -> None:
        want, got = self.model.cancel(request), await self.queue.cancel(request)
        must(got == want, f"cancel answers {got}, by the laws {want}")
        await self.check()

    async def attach(self, gateway: str, request: str) -> m.Attached:
        reader = self.readers.setdefault(gateway, Reader())
        view = reader.views.setdefault(request, [])
        self.model.attach(request, gateway)
        after = len(view)
        got = await self.queue.attach(request, gateway, after_seq=after, after_chain=view[-1][2] if view else "")
        q = self.model.requests[request]
        must(got.status is m.AttachStatus.OK and got.state == q.state and got.live != q.ended, f"attach answers {got}")
        must([e.seq for e in got.entries] == list(range(after + 1, len(q.log) + 1)), f"attach after {after} brings {got.entries}")
        view += [(e.seq, e.data, e.chain) for e in got.entries]
        await self.check()
        return got

    async def detach(self, gateway: str, request: str, then_continue: bool = False) -> None:
        self.readers.setdefault(gateway, Reader()).views.pop(request, None)
        self.model.detach(request, gateway, then_continue)
        await self.queue.detach(request, gateway, then_continue=then_continue)
        await self.check()

    async def keep_reading(self, gateway: str) -> None:
        self.readers.setdefault(gateway, Reader())
        self.model.keep_reading(gateway)
        await self.queue.keep_reading(gateway)
        await self.check()

    async def read_feed(self, gateway: str) -> bool:
        """Take in all that the feed brings; attach anew where it was cut. Then what it has is the log. Answers: was it cut?"""
        reader = self.readers.setdefault(gateway, Reader())
        alive = self.model.is_reading(gateway)
        cut = False
        while await self._more(f"{{s0}}:feed:{gateway}", reader.after):
            reader.after, entries = await self.queue.read_feed(gateway, reader.after, block_ms=1)
            cut = cut or None in entries
            for entry in entries:
                view = None if entry is None else reader.views.get(entry.request)
                if entry is not None and view is not None and entry.seq > len(view):
                    must(cut or entry.seq == len(view) + 1, f"the feed of {gateway} leaps to {entry} after {len(view)}")
                    if entry.seq == len(view) + 1:
                        view.append((entry.seq, entry.data, entry.chain))
            await self.queue.trim_feed(gateway, reader.after)
        if cut:
            for request in list(reader.views):
                await self.attach(gateway, request)
        for request, view in reader.views.items() if alive else ():
            entries = log_of(self.seen.of["output"].get(request, []))
            stored = [(seq, data.encode(), chain) for seq, _, _, data, chain in entries]
            must(view == stored, f"{gateway} has {view} of {request}, the log is {stored}")
        return cut

    async def _more(self, stream: str, after: str) -> bool:
        """Whether a blocking read would not block: a server wakes late from even the shortest block."""
        return bool(await self.redis.xrange(stream, f"({after}", "+", count=1))

    # ---- workers' side

    async def park(
        self, worker: str, limit: int = 100, slots: int = 8, weight: float = 1.0, accepting: bool = True, **more: float
    ) -> m.Parked:
        given: dict[str, Any] = {"prefill_weight": 4.0 * weight, **more}
        want = self.model.park(laws.Worker(worker, limit, slots, weight, accepting, self.now, **given))
        got = await self.queue.park(m.Offer(worker, MODEL, limit, slots, weight, accepting, **given))
        must((got.barred, got.room_tokens, got.held, got.granted) == want, f"park answers {got}, by the laws {want}")
        await self.check()
        return got

    async def read_inbox(self, worker: str) -> list[m.Grant]:
        """Every grant that is read is one that stands."""
        after = self.inboxes.get(worker, "0")
        if not await self._more(f"{{s0}}:inbox:{worker}", after):
            return []
        after, words = await self.queue.read_inbox(worker, after, block_ms=1)
        self.inboxes[worker] = after
        grants = [word for word in words if isinstance(word, m.Grant)]
        for grant in grants:
            q = self.model.requests[grant.request]
            stands = q.state is S.GRANTED and q.worker == worker and q.attempt == grant.attempt
            must(stands and grant.nonce == self.grants[q.id, q.attempt].nonce, f"{worker} reads {grant} while it is {q}")
        for word in words:
            if isinstance(word, m.Stop):
                must(not self.model.holds(word.request, word.attempt), f"{worker} is told to stop what it holds: {word}")
        return grants

    def grant(self, request: str) -> m.Grant:
        """The grant that stands."""
        return self.grants[request, self.model.requests[request].attempt]

    async def begin(self, grant: m.Grant) -> m.Begun | None:
        want = self.model.begin(grant.request, grant.attempt)
        got = await self.queue.begin(grant)
        must((got is not None) == want, f"begin answers {got}, by the laws {want}")
        if got is not None:
            q = self.model.requests[grant.request]
            same = (got.request.id, got.seq, got.attempt, got.deadline_at_ms) == (q.id, len(q.log), q.attempt, q.deadline)
            must(same, f"begin answers {got}, by the laws {q}")
        await self.check()
        return got

    async def append(self, grant: m.Grant, seq: int, data: bytes) -> None:
        want = self.model.append(grant.request, grant.attempt, seq, data)
        got = await self.queue.append(grant, seq, data)
        must(got == want, f"append answers {got}, by the laws {want}")
        await self.check()

    async def finish(self, grant: m.Grant, seq: int, last: bytes = b"", state: RequestState = S.COMPLETED) -> None:
        want = self.model.finish(grant.request, grant.attempt, seq, last, state)
        got = await self.queue.finish(grant, seq, last, b'{"finish_reason":"stop"}', state=state)
        must(got == want, f"finish answers {got}, by the laws {want}")
        await self.check()

    async def renew(self, worker: str, grants: list[m.Grant]) -> None:
        lost, unknown = self.model.renew(worker, [(g.request, g.attempt) for g in grants])
        got = await self.queue.renew(worker, grants)
        same = {request for request, _ in got.lost} == lost and {g.request for g in got.unknown} == unknown
        must(same, f"renew answers {got}, by the laws {lost} and {unknown}")
        for grant in got.unknown:
            must(grant == self.grant(grant.request), f"renew names {grant}, it is {self.grant(grant.request)}")
        await self.check()

    async def release(self, grant: m.Grant) -> None:
        want, got = self.model.release(grant.request, grant.attempt), await self.queue.release(grant)
        must(got in want, f"release answers {got}, by the laws {want}")
        await self.check()

    async def retry(self, grant: m.Grant) -> None:
        want, got = self.model.retry(grant.request, grant.attempt), await self.queue.retry(grant, "engine_error", "boo")
        must(got in want, f"retry answers {got}, by the laws {want}")
        await self.check()

    async def abandon(self, worker: str, suspects: tuple[str, ...] = ()) -> None:
        order = [i.decode() for i in await self.redis.hkeys(f"{{s0}}:held:{worker}")]
        want = self.model.abandon(worker, set(suspects), order)
        got = await self.queue.abandon(worker, "its process exited", suspects)
        must(got == want, f"abandon moves {got}, by the laws {want}")
        await self.check()

    async def write_as_stranger(self, grant: m.Grant) -> None:
        """Half of the fence is not enough: after a failover two workers may hold the same attempt number."""
        q = self.model.requests[grant.request]
        for stranger in (replace(grant, nonce="f" * 16), replace(grant, attempt=q.attempt + 1)):
            answers = [
                await self.queue.begin(stranger) and "begun",
                await self.queue.append(stranger, len(q.log) + 1, b"stolen"),
                await self.queue.finish(stranger, len(q.log) + 1, b"stolen", b"{}"),
                await self.queue.release(stranger),
                await self.queue.retry(stranger, "engine_error", "stolen"),
            ]
            must(answers == [None] + [m.WriteStatus.FENCED] * 4, f"{stranger} is answered {answers}")
            renewed = await self.queue.renew("stranger", [stranger])
            must(renewed.lost == ((stranger.request, stranger.attempt),), f"{stranger} renews: {renewed}")
        await self.check()

    # ---- everybody's

    async def pause(self, paused: bool) -> None:
        self.model.pause(paused)
        await self.queue.pause(MODEL, paused)
        await self.check()

    async def take_owed(self, again_ms: int = 30_000) -> dict[str, int]:
        want, got = self.model.take_owed(again_ms), await self.outbox.take(again_ms=again_ms)
        must({each.request: each.tried for each in got} == want, f"owed are {got}, by the laws {want}")
        await self.check()
        return want

    async def note_try(self, request: str, number: int, verdict: Verdict, wait_ms: int = 5_000) -> None:
        want = self.model.note_try(request, number, verdict, wait_ms)
        got = await self.outbox.note(request, number, verdict, status=500, took_ms=3, wait_ms=wait_ms)
        must(got == want, f"a try is answered {got}, by the laws {want}")
        await self.check()

    async def sweep(self) -> None:
        want, got = self.model.sweep(), await self.queue.sweep()
        must(got == want, f"sweep moves {got}, by the laws {want}")
        await self.check()
