"""Connections that tell of every broken wire in one way: the client's ConnectionError.

Never here: pools, timeouts (redis_client.py), who the master is (sentinel.py).
"""

from typing import Any

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import parse_url


class ToldBroken:
    """uvloop raises RuntimeError for a write to a wire that was cut while it connected; the client knows only OSError."""

    leaves_replicas = False
    """Whether a server that says it is a replica is not the one this connection is for."""

    async def _send_packed_command(self, command: Any) -> None:
        try:
            await super()._send_packed_command(command)  # type: ignore[misc]
        except RuntimeError as error:
            raise ConnectionResetError(104, str(error)) from error


class TcpConnection(ToldBroken, Connection):
    """redis://"""


class TlsConnection(ToldBroken, SSLConnection):
    """rediss://"""


class UnixConnection(ToldBroken, UnixDomainSocketConnection):
    """unix://"""


_OURS: dict[Any, type] = {Connection: TcpConnection, SSLConnection: TlsConnection, UnixDomainSocketConnection: UnixConnection}


def url_arguments(url: str) -> dict[str, Any]:
    """What a pool needs to connect to a URL."""
    options = dict(parse_url(url))
    return {**options, "connection_class": _OURS[options.get("connection_class", Connection)]}
