"""How long a model's answers get, learned from all its workers, so that a cost need not be the most a request may come to.

A survival table over lengths that grow by a quarter of an octave: how many answers reached each, how many of those ended
there by themselves. What was cut off (by max_tokens, a cancel, a crash) or still runs has only reached: so neither short
limits nor the quick ones that end first make answers look shorter. Halved when full, so it follows change. Pure but for
`Lengths`. Never here: what a request is priced at (gateway/admission.py).
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from dispatch import keys
from dispatch.faults import STORE_FAULT

_STEPS = 4  # lengths in an octave
_ENOUGH = 50  # answers that ended by themselves, before anything is believed of them
_KEPT_S = 30 * 86_400  # of a model that nobody asks any more
_FULL = 4_096  # answers, before the old ones count half


def step_of(tokens: int) -> int:
    """The step of the table a length belongs to, from 0 for an answer of one token."""
    return max(0, math.ceil(_STEPS * math.log2(tokens) - 1e-9)) if tokens > 0 else 0


def tokens_of(step: int) -> int:
    """The longest answer that belongs to a step."""
    return math.floor(2 ** (step / _STEPS) + 1e-9)


class Counts:
    """What a worker saw since it last told: answers that reached a length, answers that ended."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def reached(self, before: int, now: int) -> None:
        """An answer grew from so many tokens (0: it began) to so many."""
        first = step_of(before) + 1 if before else 0
        for step in range(first, step_of(now) + 1):
            self._seen[f"r{step}"] += 1

    def ended(self, tokens: int) -> None:
        """An answer that had reached so many tokens ended by itself."""
        self._seen[f"e{step_of(tokens)}"] += 1

    def take(self) -> Mapping[str, int]:
        """All that was counted; from now on it counts anew."""
        seen, self._seen = self._seen, Counter()
        return seen

    def put_back(self, seen: Mapping[str, int]) -> None:
        """What was taken could not be told."""
        self._seen.update(seen)


def percentile(table: Mapping[str, int], share: float) -> int | None:
    """The length that so large a share of answers does not exceed, left to themselves; None while too little is known."""
    if sum(count for name, count in table.items() if name[:1] == "e") < _ENOUGH:
        return None
    alive = 1.0
    for step in sorted(int(name[1:]) for name in table if name[:1] == "r" and name[1:].isdecimal()):
        reached, ended = table.get(f"r{step}", 0), table.get(f"e{step}", 0)
        if reached > 0:
            alive *= 1.0 - min(1.0, ended / reached)
        if alive <= 1.0 - share:
            return tokens_of(step)
    return None


class Lengths:
    """The tables of all models, in Redis: a hash each, `r<n>` how many reached step n, `e<n>` how many of them ended there."""

    def __init__(self, redis: Redis) -> None:
        # See looking.py: redis-py's reply types are unions that our pinned protocol never needs.
        self._redis: Any = redis

    async def add(self, model: str, seen: Mapping[str, int]) -> None:
        """Add what a worker saw."""
        if not seen:
            return
        name = keys.lengths(model)
        async with self._redis.pipeline(transaction=True) as pipe:
            for field, count in seen.items():
                pipe.hincrby(name, field, count)
            pipe.expire(name, _KEPT_S)
            pipe.hget(name, "r0")
            *_, began = await pipe.execute()
        if began is not None and int(began) >= _FULL:
            await self._redis.transaction(_halve(name), name)

    async def table(self, model: str) -> Mapping[str, int]:
        """A model's table; empty when nothing is known, or when what lies there is none of ours."""
        try:
            found: Mapping[bytes, bytes] = await self._redis.hgetall(keys.lengths(model))
            return {field.decode(): int(count) for field, count in found.items()}
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return {}
        except ValueError:
            return {}


async def tell(lengths: Lengths, model: str, counts: Counts) -> None:
    """Tell what was counted; what could not be told is told the next time."""
    seen = counts.take()
    try:
        await lengths.add(model, seen)
    except STORE_FAULT:
        counts.put_back(seen)
        raise


def _halve(name: str) -> Any:
    async def halve(pipe: Any) -> None:
        found = await pipe.hgetall(name)
        pipe.multi()
        if int(found.get(b"r0", 0)) >= _FULL:  # else somebody else was first
            for field, count in found.items():
                pipe.hset(name, field, int(count) // 2)

    return halve
