"""Which server answers, and which history of its data it continues: how a client notices that Redis may have gone back in time.

A restart gives a server a new run id; a failover or a restore gives its data a new replication id. While both stay the
same nothing that was acknowledged can have been lost. Never here: what follows from a change (gateway/promises.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ServerHistory:
    """`run_id` is new with each start of a server, `replication_id` with each break in the history of its data."""

    run_id: str
    replication_id: str
    is_master: bool


async def read_history(redis: Any) -> ServerHistory:
    """Ask the server. Raises what the client raises."""
    info: Mapping[str, Any] = await redis.info("server", "replication")
    return ServerHistory(str(info.get("run_id", "")), str(info.get("master_replid", "")), info.get("role") == "master")
