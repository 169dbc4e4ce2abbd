"""What the nemesis and the observer see of a run: the roles, the server, and Redis read past every proxy.

Never here: faults, judgement.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chaos.history import Recorder
from chaos.house import House, Role
from chaos.servers import Server
from dispatch.faults import STORE_FAULT
from dispatch.fleet import Fleet
from dispatch.keys import ShardKeys
from dispatch.queue import Queue
from dispatch.records import plain_fields
from dispatch.redis_client import connect
from dispatch.rules import QueueRules

SHARD = "s0"
AWAY = (STORE_FAULT, TimeoutError, OSError)
_ASK_S = 2.0


@dataclass
class Scene:
    """One run's surroundings."""

    house: House
    server: Server
    record: Recorder
    rules: QueueRules
    models: Sequence[str]
    scaled: bool = False
    """Whether autoscalers and agents are among the victims."""

    def __post_init__(self) -> None:
        self.keys = ShardKeys(SHARD)
        self._port = 0
        self._redis: Any = None

    async def redis(self) -> Any:
        """A client to whoever is the master now."""
        port = (await self.server.master()).port
        if port != self._port:
            if self._redis is not None:
                await self._redis.aclose()
            self._port, self._redis = port, connect(f"redis://127.0.0.1:{port}/0", max_connections=8)
        return self._redis

    async def queue(self) -> Queue:
        """The laws, as the roles use them."""
        return Queue(await self.redis(), self.rules, shard=SHARD)

    async def close(self) -> None:
        """Close the client."""
        if self._redis is not None:
            await self._redis.aclose()

    async def worker_ids(self, role: Role) -> list[str]:
        """The ids under which a worker process is known to the fleet."""
        pid = role.pid
        return [beat.id for beat in await Fleet(await self.redis()).workers() if beat.pid == pid] if pid else []

    async def running_at(self, workers: Sequence[str]) -> list[tuple[str, int, int]]:
        """(request, attempt, seq) of all that these workers run, as Redis has it."""
        redis, found = await self.redis(), []
        for worker in workers:
            for raw in await redis.hkeys(self.keys.held(worker)):
                request = raw.decode()
                stored = plain_fields(await redis.hgetall(self.keys.request(request)))
                if stored.get("state") == "running":
                    found.append((request, int(stored["attempt"]), int(stored.get("seq", 0))))
        return found

    async def note_victims(self, role: Role, workers: Sequence[str], cause: str) -> None:
        """Write down what a worker ran at the moment it was struck."""
        try:
            async with asyncio.timeout(_ASK_S):
                running = await self.running_at(workers)
        except AWAY:
            return
        self.record("victims", role=role.name, workers=list(workers), cause=cause, requests=running)

    async def ids_or_none(self, role: Role) -> list[str]:
        """Its worker ids; none when Redis does not answer."""
        try:
            async with asyncio.timeout(_ASK_S):
                return await self.worker_ids(role)
        except AWAY:
            return []
