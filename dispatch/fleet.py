"""Heartbeats, who is there, and the cards of models. Steers screens and parking; a request's safety never depends on it."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from redis.asyncio import Redis

from dispatch import keys
from dispatch.messages import decode, encode
from dispatch.reports import Heartbeat, ModelCard, TokenizerFiles

_DRAINS_TTL_S = 86_400


class Fleet:
    """The fleet as Redis knows it."""

    def __init__(self, redis: Redis) -> None:
        # See looking.py: redis-py's reply types are unions that our pinned protocol never needs.
        self._redis: Any = redis
        self._published: dict[str, tuple[ModelCard, TokenizerFiles | None]] = {}

    async def beat(self, heartbeat: Heartbeat, ttl_ms: int) -> None:
        """Say that a worker lives. Publishes its model's card again where Redis came back without it, or with a smaller one's."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(keys.heartbeat(heartbeat.id), encode(heartbeat), px=ttl_ms)
            pipe.zadd(keys.WORKERS, {heartbeat.id: heartbeat.beat_at_ms})
            pipe.get(keys.model_card(heartbeat.model))
            *_, stored = await pipe.execute()
        if heartbeat.model in self._published:
            card, tokenizer = self._published[heartbeat.model]
            most = decode(stored, ModelCard, keys.model_card(heartbeat.model)).max_cost_tokens if stored else -1
            if most < card.max_cost_tokens:
                await self.put_card(card, tokenizer, publisher=heartbeat.id)

    async def leave(self, worker: str) -> None:
        """A worker's last word."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.delete(keys.heartbeat(worker))
            pipe.zrem(keys.WORKERS, worker)
            await pipe.execute()

    async def workers(self) -> Sequence[Heartbeat]:
        """All workers whose heartbeat stands, oldest first; forgets the others."""
        ids = [i.decode() for i in await self._redis.zrange(keys.WORKERS, 0, -1)]
        if not ids:
            return []
        beats = await self._redis.mget([keys.heartbeat(i) for i in ids])
        gone = [i for i, beat in zip(ids, beats, strict=True) if beat is None]
        if gone:
            await self._redis.zrem(keys.WORKERS, *gone)
        alive = [decode(b, Heartbeat, keys.heartbeat(i)) for i, b in zip(ids, beats, strict=True) if b is not None]
        return sorted(alive, key=lambda h: (h.started_at_ms, h.id))

    async def put_card(self, card: ModelCard, tokenizer: TokenizerFiles | None, *, publisher: str = "") -> ModelCard:
        """Publish a model's card and its tokenizer files; returns the card as stored.

        Beside other standing workers of the same engine its `max_cost_tokens` never shrinks by this: a small worker does
        not make a big one's requests impossible. The first to stand says anew what can be held. `publisher` is the id of
        the worker that publishes.
        """
        self._published[card.name] = (card, tokenizer)
        if tokenizer is not None:
            stored = encode(tokenizer)
            sha256 = hashlib.sha256(stored).hexdigest()
            await self._redis.set(keys.tokenizer(sha256), stored)
            card = replace(card, tokenizer=sha256)
        key = keys.model_card(keys.check_model_name(card.name))
        others = any(h.model == card.name and h.id != publisher for h in await self.workers())

        async def store(pipe: Any) -> ModelCard:
            known = await pipe.get(key)
            kept = card
            if known is not None and others:
                before = decode(known, ModelCard, key)
                if before.engine == card.engine:
                    kept = replace(card, max_cost_tokens=max(card.max_cost_tokens, before.max_cost_tokens))
            pipe.multi()
            pipe.set(key, encode(kept))
            pipe.sadd(keys.MODELS, card.name)
            return kept

        # Two workers that start together must not undo each other: whoever was overtaken looks again.
        stored_card: ModelCard = await self._redis.transaction(store, key, value_from_callable=True)
        return stored_card

    async def card(self, name: str) -> ModelCard | None:
        """The card of a model, or None."""
        stored = await self._redis.get(keys.model_card(name))
        return None if stored is None else decode(stored, ModelCard, keys.model_card(name))

    async def cards(self) -> Sequence[ModelCard]:
        """All cards, by name."""
        names = sorted(n.decode() for n in await self._redis.smembers(keys.MODELS))
        found = [await self.card(name) for name in names]
        return [card for card in found if card is not None]

    async def tokenizer(self, sha256: str) -> TokenizerFiles | None:
        """Stored tokenizer files, or None."""
        stored = await self._redis.get(keys.tokenizer(sha256))
        return None if stored is None else decode(stored, TokenizerFiles, keys.tokenizer(sha256))

    # ---- drains

    async def ask_to_drain(self, *names: str, now_ms: int) -> None:
        """Ask workers, by worker or launch id, to take nothing new. They finish what they hold and stay until they are ended."""
        if names:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hset(keys.DRAINS, mapping=dict.fromkeys(names, now_ms))
                pipe.expire(keys.DRAINS, _DRAINS_TTL_S)
                await pipe.execute()

    async def take_back_drain(self, *names: str) -> None:
        """They are needed again, or gone."""
        if names:
            await self._redis.hdel(keys.DRAINS, *names)

    async def drains(self) -> dict[str, int]:
        """All that were asked, and when (ms)."""
        return {name.decode(): int(at) for name, at in (await self._redis.hgetall(keys.DRAINS)).items()}

    async def is_asked_to_drain(self, *names: str) -> bool:
        """Whether one of these was asked."""
        return any(await self._redis.hmget(keys.DRAINS, *names))
