"""What is learned of the lengths of answers: right with cut-off answers, quiet until enough is known, follows change."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from dispatch import keys
from dispatch.lengths import Counts, Lengths, percentile, step_of, tell, tokens_of


@given(st.integers(1, 10**6))
def test_a_length_belongs_to_the_step_that_ends_at_or_after_it(tokens: int) -> None:
    step = step_of(tokens)
    assert tokens_of(step) >= tokens
    assert step == 0 or 2 ** ((step - 1) / 4) < tokens


def seen(lengths: list[int], limit: int = 10**9) -> Counts:
    counts = Counts()
    for length in lengths:
        counts.reached(0, min(length, limit))
        if length <= limit:
            counts.ended(length)
    return counts


def test_nothing_is_believed_of_a_few_answers() -> None:
    assert percentile({}, 0.95) is None
    assert percentile(seen([100] * 49).take(), 0.95) is None
    assert percentile(seen([100] * 50).take(), 0.95) == tokens_of(step_of(100))


def test_the_percentile_of_many_answers() -> None:
    chance = random.Random(1)
    lengths = [int(chance.lognormvariate(5, 0.8)) + 1 for _ in range(3000)]
    true = sorted(lengths)[int(0.95 * len(lengths))]
    found = percentile(seen(lengths).take(), 0.95)
    assert found is not None and true <= found * 1.01 and found <= true * 1.25


def test_answers_that_were_cut_off_do_not_look_short() -> None:
    chance = random.Random(2)
    lengths = [int(chance.lognormvariate(5, 0.8)) + 1 for _ in range(4000)]
    true = sorted(lengths)[int(0.95 * len(lengths))]
    counts = seen(lengths[:2000], limit=64)  # half of all clients ask for 64 tokens at most
    for name, count in seen(lengths[2000:]).take().items():
        counts._seen[name] += count
    found = percentile(counts.take(), 0.95)
    assert found is not None and true * 0.85 <= found <= true * 1.3


def test_where_all_were_cut_off_nothing_is_known_of_longer_ones() -> None:
    assert percentile(seen([10] * 100 + [1000] * 900, limit=64).take(), 0.95) is None


def test_those_that_still_run_count_as_far_as_they_came() -> None:
    counts = seen([10] * 60)  # the quick ones end first
    for _ in range(60):
        counts.reached(0, 5)
        counts.reached(5, 700)
    assert percentile(counts.take(), 0.95) is None  # and not 10


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8))
def test_growth_counts_each_step_once_however_it_is_cut(grown: list[int]) -> None:
    whole, parts = Counts(), Counts()
    whole.reached(0, sum(grown))
    at = 0
    for more in grown:
        parts.reached(at, at + more)
        at += more
    assert parts.take() == whole.take()


async def test_the_fleet_adds_up_and_forgets(redis: Redis) -> None:
    lengths = Lengths(redis)
    assert percentile(await lengths.table("m"), 0.95) is None
    for _ in range(4):
        await lengths.add("m", seen([100] * 1000).take())
    assert percentile(await lengths.table("m"), 0.95) == tokens_of(step_of(100))
    # Answers become ten times longer; two tables' worth of them later only that is known.
    for _ in range(10):
        await lengths.add("m", seen([1000] * 1000).take())
    assert int((await redis.hget(keys.lengths("m"), "r0")) or 0) < 6_000
    assert percentile(await lengths.table("m"), 0.95) == tokens_of(step_of(1000))
    assert await redis.ttl(keys.lengths("m")) > 86_400


async def test_two_that_find_it_full_halve_it_once(redis: Redis) -> None:
    lengths = Lengths(redis)
    await redis.hset(keys.lengths("m"), mapping={"r0": 4_000})
    await asyncio.gather(*(lengths.add("m", {"r0": 100}) for _ in range(2)))
    assert 2_000 <= int((await redis.hget(keys.lengths("m"), "r0")) or 0) <= 2_200


async def test_what_could_not_be_told_is_told_later(redis: Redis) -> None:
    lengths, counts = Lengths(redis), seen([5] * 3)
    real, lengths._redis = lengths._redis, None

    class Away:
        def pipeline(self, **_: object) -> None:
            raise RedisConnectionError("away")

    lengths._redis = Away()
    with pytest.raises(RedisConnectionError):
        await tell(lengths, "m", counts)
    lengths._redis = real
    await tell(lengths, "m", counts)
    assert (await lengths.table("m"))["r0"] == 3


async def test_what_nobody_of_ours_wrote_is_no_table(redis: Redis) -> None:
    await redis.hset(keys.lengths("m"), "r0", "many")
    await redis.expire(keys.lengths("m"), 60)
    assert await Lengths(redis).table("m") == {}
