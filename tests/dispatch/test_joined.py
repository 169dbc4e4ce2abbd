"""Requests that share a call: what becomes of each is what calls of their own, one after the other, would have made of it."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from dispatch import batching, queue
from dispatch import messages as m
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.rules import QueueRules
from dispatch.states import OnDisconnect, Priority, RequestState
from tests.dispatch.invariants import Snapshot, broken, snapshot

_RULES = QueueRules(max_backlog=40, feed_cap=60)
_STRATEGIES = ("pull", "pull", "pull", "round_robin", "weighted_round_robin", "least_connections", "power_of_two", "session")
_ENTRY_IDS = ("queue", "sizes", "others", "inbox")


@dataclass
class Side:
    """One of the two: a queue on its own database, and what its workers were granted."""

    redis: Redis
    joined: bool
    now: int = 1_700_000_000_000
    grants: list[m.Grant] = field(default_factory=list)
    read: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.queue = Queue(self.redis, _RULES, now=lambda: self.now)

    async def all(self, asked: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
        if self.joined:
            return list(await asyncio.gather(*(one() for one in asked), return_exceptions=True))
        return [(await asyncio.gather(one(), return_exceptions=True))[0] for one in asked]

    async def read_inboxes(self, workers: Sequence[str]) -> None:
        for worker in workers:
            while True:
                after, words = await self.queue.read_inbox(worker, self.read.get(worker, "0"), block_ms=None)
                self.read[worker] = after
                self.grants += [word for word in words if isinstance(word, m.Grant)]
                if not words:
                    break


def _told(s: Snapshot) -> dict[str, Any]:
    """A snapshot without what the server's clock made: the ids of its own entries, by their place instead."""

    def place(area: str, name: str, entry: str) -> Any:
        ids = [each for each, _ in s.of[area].get(name, [])]
        return ids.index(entry) if entry in ids else "gone"

    told: dict[str, Any] = {area: found for area, found in s.of.items() if area not in _ENTRY_IDS}
    for area in ("queue", "inbox"):
        told[area] = {name: [fields for _, fields in entries] for name, entries in s.of[area].items()}
    told["sizes"] = {
        name: {place("queue", name, entry): cost for entry, cost in members} for name, members in s.of["sizes"].items()
    }
    told["others"] = {
        model: sorted((line, place("queue", f"{model}:{line}", entry)) for line, entry in (each.split() for each, _ in members))
        for model, members in s.of["others"].items()
    }
    for r in s.of["request"].values():
        if "entry" in r:
            r["entry"] = place("queue", f"{r['model']}:{r['priority']}{r['part']}", r["entry"])
        if "inbox" in r:
            r["inbox"] = place("inbox", r["worker"], r["inbox"])
    told["kept"] = {name: ttl > 0 for name, ttl in s.pttl.items()}
    return told


def _differing(ours: Any, theirs: Any, where: str = "") -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(ours.keys() | theirs.keys())
        return [line for name in names for line in _differing(ours.get(name), theirs.get(name), f"{where}/{name}")]
    return [] if ours == theirs else [f"{where}: joined {ours!r}, one by one {theirs!r}"]


class Story:
    """What is asked of both sides, in groups of one kind."""

    def __init__(self, seed: int, sides: Sequence[Side], salts: "Salts") -> None:
        self.rng = random.Random(seed)
        self.sides, self.salts = sides, salts
        self.workers = [f"w-{n}" for n in range(self.rng.choice((1, 3, 12)))]
        self.ids = itertools.count()
        self.seqs: dict[str, int] = {}
        self.asked: list[m.NewRequest] = []

    async def both(self, ask: Callable[[Side], Sequence[Callable[[], Awaitable[Any]]]]) -> list[Any]:
        replies = []
        for side in self.sides:
            self.salts.again()
            replies.append(await side.all(ask(side)))
        self.salts.on()
        joined, single = ([f"{type(r).__name__}" if isinstance(r, Exception) else r for r in each] for each in replies)
        assert joined == single
        return replies[0]

    async def park(self, everybody: bool = False) -> None:
        for worker in self.workers if everybody else self.rng.sample(self.workers, max(1, len(self.workers) // 2)):
            room, slots, weight = (self.rng.choice(of) for of in ((1_000, 5_000, 100_000), (2, 16, 64), (10.0, 100.0)))
            accepting = everybody or len(self.workers) == 1 or self.rng.random() < 0.9
            prefill_weight = self.rng.choice((0.0, 200.0, 5_000.0))
            offer = m.Offer(worker, "demo", room, slots, weight, accepting=accepting, prefill_weight=prefill_weight)
            await self.both(lambda side, offer=offer: [lambda: side.queue.park(offer)])

    def _new(self) -> m.NewRequest:
        rng, prompt = self.rng, self.rng.choice((0, 10, 200))
        known = rng.choice(self.asked) if self.asked and rng.random() < 0.1 else None
        if known is not None:
            another = replace(known, id=f"s0.{next(self.ids):032x}", idempotency="a key", body_hash=rng.choice("xy"))
            return rng.choice((known, another))
        name = f"s0.{next(self.ids):032x}"
        asked = m.InferenceRequest(name, "demo", m.InputKind.COMPLETION, m.Sampling(1), prompt="w", cost_tokens=10)
        new = m.NewRequest(
            name, "demo", m.encode(asked), m.InputKind.COMPLETION, prompt + rng.choice((1, 50, 400)), deadline_ms=600_000,
            priority=rng.choice(list(Priority)), reader=rng.choice(("", "g-1", "g-2")), prompt_tokens=prompt, session="some",
            on_disconnect=rng.choice(list(OnDisconnect)), strategy=rng.choice(_STRATEGIES), retry_of=rng.choice(("", "s0.old")),
            webhook=rng.choice(("", "http://there")), idempotency=rng.choice(("", "", "a key")), body_hash="x",
        )  # fmt: skip
        self.asked.append(new)
        return new

    async def enqueue(self) -> None:
        group = [self._new() for _ in range(self.rng.randint(1, 45))]
        await self.both(lambda side: [lambda new=new: side.queue.enqueue(new) for new in group])
        for side in self.sides:
            await side.read_inboxes(self.workers)
        joined, single = ([replace(g, inbox_id="") for g in side.grants] for side in self.sides)
        assert joined == single

    def _some(self) -> list[int]:
        """Grants by their place; some are named twice, some are long over."""
        count = len(self.sides[0].grants)
        return [self.rng.randrange(max(0, count - 30), count) for _ in range(self.rng.randint(1, 60))] if count else []

    async def begin(self) -> None:
        group = self._some()
        await self.both(lambda side: [lambda n=n: side.queue.begin(side.grants[n]) for n in group])

    async def append(self) -> None:
        group = []
        for n in self._some():
            seq = self.seqs.get(self.sides[0].grants[n].request, 0) + self.rng.choice((1, 1, 1, 0, 2))
            group.append((n, seq))
        said = await self.both(
            lambda side: [lambda n=n, seq=seq: side.queue.append(side.grants[n], seq, b"some") for n, seq in group]
        )
        for (n, seq), reply in zip(group, said, strict=True):
            if reply is m.WriteStatus.OK:
                self.seqs[self.sides[0].grants[n].request] = seq

    async def finish(self) -> None:
        group = [(n, self.seqs.get(self.sides[0].grants[n].request, 0) + 1, self.rng.random() < 0.2) for n in self._some()]
        detail = b'{"usage":{"prompt_tokens":3,"completion_tokens":1}}'
        await self.both(
            lambda side: [
                lambda n=n, seq=seq, bad=bad: side.queue.finish(
                    side.grants[n], seq, b"last", detail, state=RequestState.FAILED if bad else RequestState.COMPLETED
                )
                for n, seq, bad in group
            ]
        )  # fmt: skip

    async def read(self) -> None:
        await self.both(lambda side: [lambda: side.queue.keep_reading("g-1")])

    async def step(self) -> None:
        for side in self.sides:
            side.now += 50
        kinds = (self.park, self.enqueue, self.enqueue, self.begin, self.begin, self.append, self.finish, self.finish, self.read)
        await self.rng.choice(kinds)()

    async def compare(self) -> None:
        joined, single = [await snapshot(side.redis) for side in self.sides]
        assert not broken(joined, _RULES)
        ours, theirs = _told(joined), _told(single)
        assert _differing(ours, theirs) == []


class Salts:
    """The same for the n-th of a group on both sides."""

    def __init__(self) -> None:
        self.base, self.n = 0, 0

    def again(self) -> None:
        self.n = 0

    def on(self) -> None:
        self.base += 1

    def __call__(self) -> str:
        self.n += 1
        return f"{self.base:08x}{self.n:08x}"


@pytest.fixture
async def sides(redis: Redis, server_url: str) -> Any:
    other = connect(f"{server_url}?db=1")
    await other.flushdb()
    yield Side(redis, True), Side(other, False)
    await other.flushdb()
    await other.aclose()


@pytest.mark.parametrize("seed", range(10))
async def test_joined_is_one_by_one(sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    salts = Salts()
    monkeypatch.setattr(queue, "_salt", salts)
    story = Story(seed, sides, salts)
    await story.park(everybody=True)
    for _ in range(16):
        for _ in range(4):
            await story.step()
        await story.compare()
    ended = [r for r in (await snapshot(sides[0].redis)).of["request"].values() if r["state"] == "completed"]
    assert len(ended) >= 5, "the story ended few requests"


async def _running(side: Side, count: int) -> list[m.Grant]:
    await side.queue.park(m.Offer("w-1", "demo", 10_000, 64, 100.0, prefill_weight=1e9))
    asked = m.InferenceRequest("s0.x", "demo", m.InputKind.COMPLETION, m.Sampling(1), prompt="w", cost_tokens=10)
    new = m.NewRequest("", "demo", m.encode(asked), m.InputKind.COMPLETION, 10, deadline_ms=600_000)
    await side.all([lambda n=n: side.queue.enqueue(replace(new, id=f"s0.{n:032x}")) for n in range(count)])
    await side.read_inboxes(["w-1"])
    await side.all([lambda grant=grant: side.queue.begin(grant) for grant in side.grants])
    return side.grants


async def test_one_call_takes_many(sides: tuple[Side, Side]) -> None:
    """Else nothing here compared anything."""
    joined, single = sides
    calls = []
    for side in (joined, single):
        await side.redis.config_resetstat()
        assert len(await _running(side, 24)) == 24
        calls.append((await side.redis.info("commandstats"))["cmdstat_fcall"]["calls"])
    assert calls[0] <= 6 < 48 < calls[1]


async def test_a_damaged_record_harms_nobody_beside_it(sides: tuple[Side, Side]) -> None:
    side = sides[0]
    grants = await _running(side, 8)
    await side.redis.delete("{s0}:output:" + grants[3].request)
    await side.redis.set("{s0}:output:" + grants[3].request, "no stream")
    replies = await side.all([lambda grant=grant: side.queue.append(grant, 1, b"some") for grant in grants])
    assert isinstance(replies[3], ResponseError) and "WRONGTYPE" in str(replies[3])
    assert [reply for n, reply in enumerate(replies) if n != 3] == [m.WriteStatus.OK] * 7
    others = [grant for grant in grants if grant != grants[3]]
    ended = await side.all([lambda grant=grant: side.queue.finish(grant, 2, b"", b"{}") for grant in others])
    assert ended == [m.WriteStatus.OK] * 7
    await side.redis.delete("{s0}:output:" + grants[3].request)


async def test_a_damaged_shared_key_keeps_no_other_from_being_written(sides: tuple[Side, Side]) -> None:
    side = sides[0]
    grants = await _running(side, 8)
    await side.redis.delete("{s0}:stats:demo")
    await side.redis.set("{s0}:stats:demo", "no hash")
    replies = await side.all([lambda grant=grant: side.queue.finish(grant, 1, b"last", b"{}") for grant in grants])
    assert all(isinstance(reply, ResponseError) for reply in replies)
    assert await side.redis.zcard("{s0}:timers") == 0 and await side.redis.hlen("{s0}:held:w-1") == 0
    again = await side.all([lambda grant=grant: side.queue.finish(grant, 1, b"last", b"{}") for grant in grants])
    assert again == [m.WriteStatus.DUP] * 8


async def test_more_than_a_call_takes_goes_in_several(sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_JOINED", 5)
    assert len(await _running(sides[0], 24)) == 24
