"""Whether a server can promise what a durability mode says must outlive a failure of Redis.

Never here: the waiting itself (batching.py), finding the server.
"""

from typing import Any

from redis.exceptions import RedisError

from dispatch.errors import PenstockError
from dispatch.settings import Durability


async def check_durability(redis: Any, mode: Durability) -> None:
    """Raises PenstockError("redis_unsuitable") with what to do, when the server cannot keep what the mode promises."""
    if mode in (Durability.AOF, Durability.AOF_ALWAYS):
        await _must(redis, mode, "appendonly", "yes", "it keeps no append-only file, so a restart forgets every request")
    if mode is Durability.AOF_ALWAYS:
        await _must(redis, mode, "appendfsync", "always", "it tells of a write before that is on the disk")
        await _must(redis, mode, "no-appendfsync-on-rewrite", "no", "while it rewrites its file, nothing is put on the disk")
    if mode is Durability.REPLICATED:
        await _must_replicate(redis, mode)


async def _must(redis: Any, mode: Durability, name: str, value: str, why: str) -> None:
    if await _configured(redis, mode, name) != value:
        raise PenstockError(
            "redis_unsuitable",
            f"Redis cannot promise redis.durability = {mode}: {why}.",
            hint=f"redis-cli CONFIG SET {name} {value}, and the same line in its configuration file; or choose another mode.",
            param="redis.durability",
        )


async def _must_replicate(redis: Any, mode: Durability) -> None:
    info = await redis.info("replication")
    replicas = [v for k, v in info.items() if str(k).startswith("slave") and isinstance(v, dict)]
    if not any(replica.get("state") == "online" for replica in replicas):
        raise PenstockError(
            "redis_unsuitable",
            f"Redis cannot promise redis.durability = {mode}: no replica is connected to it.",
            hint="Start one with `replicaof HOST PORT` and wait until it is in step, or choose another mode.",
            param="redis.durability",
        )
    least = await _configured(redis, mode, "min-replicas-to-write")
    if not least.isdigit() or int(least) < 1:
        raise PenstockError(
            "redis_unsuitable",
            f"Redis cannot promise redis.durability = {mode}: it would go on writing without any replica.",
            hint="redis-cli CONFIG SET min-replicas-to-write 1 and CONFIG SET min-replicas-max-lag 10, on the replicas too, "
            "and the same lines in their configuration files.",
            param="redis.durability",
        )


async def _configured(redis: Any, mode: Durability, name: str) -> str:
    try:
        found = await redis.config_get(name)
    except RedisError as error:
        raise PenstockError(
            "redis_unsuitable",
            f"Redis does not let anybody look whether it can promise redis.durability = {mode} (CONFIG GET: {error}).",
            hint="Allow CONFIG GET for this user, or set redis.durability = memory and see to it yourself.",
            param="redis.durability",
        ) from error
    value = next(iter(found.values()), "") if found else ""
    return value.decode() if isinstance(value, bytes) else str(value)
