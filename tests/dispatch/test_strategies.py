"""The scripts choose as dispatch/scores.py says: every strategy, for thousands of requests on random fleets."""

import random
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from dispatch import messages as m
from dispatch import queue as queues
from dispatch import scores
from dispatch.queue import Queue
from dispatch.rules import QueueRules
from dispatch.scores import Load, Need, Strategy
from tests.dispatch.twin import MODEL

SALT = "0123456789abcdef"
FLEETS, REQUESTS = 20, 25


@pytest.fixture(autouse=True)
def known_salt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(queues, "_salt", lambda: SALT)
    yield


def random_offer(rng: random.Random, n: int) -> m.Offer:
    return m.Offer(
        f"w-{rng.randrange(1 << 20):x}-{n}",
        MODEL,
        limit_tokens=rng.choice((50, 400, 3_000)),
        slots=rng.choice((1, 4, 200)),
        weight=rng.choice((1.0, 1.0, rng.uniform(0.1, 5_000))),
        prefill_weight=rng.choice((0.0, rng.uniform(1, 30_000))),
        memory=rng.random(),
        utilisation=rng.choice((0.5, rng.random())),
        waiting=rng.randrange(4),
    )


async def loads(redis: Redis, turn: float) -> list[Load]:
    """The parked pulls as Redis knows them now."""
    both = [f"{{s0}}:{which}:{MODEL}" for which in ("parked", "shut")]
    names = sorted([name.decode() for key in both for name in await redis.zrange(key, 0, -1)])
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.hgetall(f"{{s0}}:worker:{name}")
    found = []
    for name, raw in zip(names, await pipe.execute(), strict=True):
        w = {key.decode(): value.decode() for key, value in raw.items()}
        found.append(
            Load(
                worker=name,
                limit_tokens=int(w["limit"]),
                used_tokens=int(w["used"]),
                held=int(w["held"]),
                slots=int(w["slots"]),
                weight=float(w["weight"]),
                prefill_weight=float(w["prefill_weight"]),
                prefill_tokens=int(w["prefill"]),
                turns=scores.turns(float(w.get("turns", 0)), turn, float(w["weight"])),
                last_granted=int(w.get("last_granted", 0)),
                memory=float(w["memory"]),
                utilisation=float(w["utilisation"]),
                waiting=int(w["waiting"]),
            )
        )
    return found


@pytest.mark.parametrize("strategy", Strategy)
async def test_the_scripts_choose_as_the_scores_say(redis: Redis, strategy: Strategy) -> None:
    rng = random.Random(strategy)
    queue = Queue(redis, QueueRules())
    met = chosen_of_many = 0
    for _ in range(FLEETS):
        await redis.flushall()
        for n in range(rng.choice((1, 2, 5, 18, 40))):
            await queue.park(random_offer(rng, n))
        running: list[str] = []
        for _ in range(REQUESTS):
            turn = float(await redis.hget(f"{{s0}}:turn:{MODEL}", strategy) or 0)
            parked = await loads(redis, turn)
            session = rng.choice("abc")
            last = await redis.get(f"{{s0}}:session:{MODEL}:{session}")
            request, prompt, cost = m.new_id(), rng.choice((0, 7, 900)), rng.choice((1, 40, 600))
            need = Need(prompt, cost, session, last.decode() if last else "", SALT + request)
            want = scores.choose(strategy, parked, need)
            asked = m.InferenceRequest(request, MODEL, m.InputKind.CHAT, m.Sampling(10))
            await queue.enqueue(
                m.NewRequest(
                    request,
                    MODEL,
                    m.encode(asked),
                    asked.kind,
                    cost,
                    60_000,
                    prompt_tokens=prompt,
                    strategy=strategy,
                    session=session,
                )
            )
            record = await queue.record(request)
            assert record is not None
            assert record.worker == (want.worker if want else ""), f"{need} meets one of {parked}"
            met += want is not None
            chosen_of_many += sum(scores.has_room(load, cost) for load in parked) > 1
            if want:
                running.append(request)
            if running and rng.random() < 0.3:
                await queue.cancel(running.pop(rng.randrange(len(running))))
    assert met > FLEETS * REQUESTS / 3 and chosen_of_many > FLEETS * REQUESTS / 4


async def test_an_unknown_strategy_is_the_default(redis: Redis) -> None:
    """A gateway of a newer version may name what these scripts do not know."""
    queue = Queue(redis, QueueRules())
    await queue.park(m.Offer("w-1", MODEL, 100, 4, 1.0))
    asked = m.InferenceRequest(m.new_id(), MODEL, m.InputKind.CHAT, m.Sampling(10))
    given = await queue.enqueue(m.NewRequest(asked.id, MODEL, m.encode(asked), asked.kind, 10, 60_000, strategy="astrology"))
    assert given.state == "granted"
