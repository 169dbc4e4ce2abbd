"""A master found by Sentinel: each new connection asks who it is; when it changes, those to the old one are dropped at once.

An old master that hangs or was cut off keeps its connections open: left alone, each would wait out a timeout of its own.
Never here: pools and timeouts (redis_client.py), deciding about a failover (Sentinel does).
"""

import asyncio
import contextlib
import logging
import urllib.parse
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from dispatch.connections import ToldBroken
from dispatch.errors import PenstockError

SCHEMES = ("redis+sentinel://", "rediss+sentinel://")

log = logging.getLogger("penstock.redis")

_ASK_WITHIN_S = 1.0
_LOOK_EVERY_S = 1.0
_DEFAULT_PORT = 26379


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """`redis+sentinel://[user:password@]host:port,host:port/service[/db][?sentinel_password=...]`."""

    sentinels: tuple[tuple[str, int], ...]
    service: str
    db: int
    tls: bool
    username: str | None
    password: str | None
    sentinel_password: str | None


def parse_sentinel_url(url: str) -> SentinelUrl:
    """The URL's parts. Raises PenstockError("bad_setting")."""
    parts = urllib.parse.urlsplit(url)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = (urllib.parse.unquote(part) for part in userinfo.partition(":"))
    service, _, db = parts.path.strip("/").partition("/")
    query = urllib.parse.parse_qs(parts.query)
    try:
        sentinels = tuple(_address(host) for host in hosts.split(",") if host)
        if not (sentinels and service) or set(query) - {"sentinel_password"}:
            raise ValueError
        return SentinelUrl(
            sentinels,
            service,
            int(db or 0),
            parts.scheme.startswith("rediss"),
            username or None,
            password or None,
            query.get("sentinel_password", [None])[0],
        )
    except ValueError as error:
        raise PenstockError(
            "bad_setting",
            "redis.url is no URL of a Sentinel group.",
            hint="Write it like redis+sentinel://10.0.0.1:26379,10.0.0.2:26379/mymaster/0",
            param="redis.url",
        ) from error


def _address(text: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(text)
    return parts.hostname, parts.port or _DEFAULT_PORT


class Masters:
    """Who the master is, for all connections of this process to one group."""

    def __init__(self, url: SentinelUrl) -> None:
        self.url = url
        self._order = list(url.sentinels)
        self._master: tuple[str, int] | None = None
        self._connections: weakref.WeakSet[_ToMaster] = weakref.WeakSet()
        self._epoch = 0
        self._superseded: set[tuple[str, int]] = set()
        self._following: asyncio.Task[None] | None = None

    async def find(self, connection: "_ToMaster") -> tuple[tuple[str, int], tuple[str, int]]:
        """The master's address, for a connection about to be made, and which Sentinel says so.

        It is hearsay until the server itself was asked: then `doubt` or `see`. Raises the client's ConnectionError.
        """
        self._connections.add(connection)
        if self._following is None or self._following.done() or self._following.get_loop() is not asyncio.get_running_loop():
            self._following = asyncio.create_task(self._follow(), name="follow the master")
        for sentinel in list(self._order):
            address = await self._ask(sentinel)
            if address is not None:
                # The one that answers is asked first from now on.
                self._order.sort(key=lambda other: other != sentinel)
                return address, sentinel
        names = ", ".join(f"{host}:{port}" for host, port in self.url.sentinels)
        raise RedisConnectionError(f"no Sentinel of {names} knows a master of {self.url.service}")

    def doubt(self, sentinel: tuple[str, int]) -> None:
        """No master was met where this one sent a connection: ask the others first from now on."""
        self._order.sort(key=lambda other: other == sentinel)

    async def _ask(self, sentinel: tuple[str, int]) -> tuple[str, int] | None:
        found = await self._tell(
            sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.url.service, password=self.url.sentinel_password
        )
        return (found[0], int(found[1])) if found else None

    async def _follow(self) -> None:
        """Look for a failover that nobody told us of: in one that was asked for, the old master serves on for up to ten seconds.

        Sentinels number their failovers: of two opinions the greater number is the newer one.
        """
        while self._connections:
            await asyncio.sleep(_LOOK_EVERY_S)
            views = [view for view in await asyncio.gather(*map(self._view, self.url.sentinels)) if view is not None]
            epoch, address = max(views, default=(0, ("", 0)))
            if epoch <= self._epoch:
                continue
            if address != self._master:
                role = await self._tell(address, "ROLE", username=self.url.username, password=self.url.password)
                if not role or role[0] != "master":
                    continue
                if self._master is not None:
                    self._superseded.add(self._master)
            self._epoch = epoch
            self._superseded.discard(address)
            self.see(address)

    async def _view(self, sentinel: tuple[str, int]) -> tuple[int, tuple[str, int]] | None:
        """The number of the last failover that this Sentinel knows, and the master since."""
        found = await self._tell(sentinel, "SENTINEL", "MASTER", self.url.service, password=self.url.sentinel_password)
        said = dict(zip(found[::2], found[1::2], strict=True)) if found and len(found) % 2 == 0 else {}
        try:
            epoch = int(said["config-epoch"])
        except (KeyError, ValueError):
            return None
        # Asked after the number: the one that leads the failover tells that a second or so before the address in this record.
        address = await self._ask(sentinel)
        return None if address is None else (epoch, address)

    async def _tell(
        self, server: tuple[str, int], *command: str, username: str | None = None, password: str | None = None
    ) -> list[Any] | None:
        """The reply of a Sentinel or a server, on a connection for this once; None: no answer."""
        client: Any = Redis(
            host=server[0],
            port=server[1],
            ssl=self.url.tls,
            username=username,
            password=password,
            socket_timeout=_ASK_WITHIN_S,
            socket_connect_timeout=_ASK_WITHIN_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=True,
        )
        try:
            return list(await client.execute_command(*command) or ())
        except (RedisError, OSError, TimeoutError):
            return None
        finally:
            await client.aclose()

    def is_superseded(self, address: tuple[str, int]) -> bool:
        """Whether a newer failover has put another one in its place, whatever it says itself."""
        return address in self._superseded

    def see(self, address: tuple[str, int]) -> None:
        """The server there has said itself that it is the master: connections to another one are dropped."""
        before, self._master = self._master, address
        if before is None or before == address:
            return
        log.warning("Follow the master", extra={"service": self.url.service, "master": f"{address[0]}:{address[1]}"})
        for connection in list(self._connections):
            connection.drop_unless(address)


class _ToMaster(ToldBroken, Connection):
    """A connection that asks before it connects, and makes sure that it met a master."""

    leaves_replicas = True

    def __init__(self, *, masters: Masters, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._masters = masters

    async def _connect(self) -> None:
        (self.host, self.port), self._told_by = await self._masters.find(self)
        with self._doubting():
            await super()._connect()  # type: ignore[no-untyped-call]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Also asks for its role: for a moment after a failover a Sentinel may name the one that was."""
        with self._doubting():
            await super().on_connect_check_health(check_health=check_health)
            try:
                await self.send_command("ROLE")
                role: Any = await super().read_response()
            except ResponseError:  # one that may not be asked
                return
            if not role or role[0] not in (b"master", "master") or self._masters.is_superseded((self.host, self.port)):
                raise RedisConnectionError(f"{self.host}:{self.port} is no master")
        self._masters.see((self.host, self.port))

    @contextlib.contextmanager
    def _doubting(self) -> Iterator[None]:
        """Also when cancelled: whoever waits for a server that hangs may be less patient than the connection."""
        try:
            yield
        except BaseException:
            self._masters.doubt(self._told_by)
            raise

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """A demoted master is left: the next command finds the new one."""
        try:
            return await super().read_response(*args, **kwargs)
        except ReadOnlyError as error:
            await self.disconnect()
            raise RedisConnectionError(f"{self.host}:{self.port} is a replica now") from error

    def drop_unless(self, address: tuple[str, int]) -> None:
        """Break it off at once, whoever waits on it, if it leads elsewhere."""
        writer = getattr(self, "_writer", None)
        if writer is not None and (self.host, self.port) != address:
            with contextlib.suppress(RuntimeError):  # its event loop may be gone
                writer.transport.abort()


class _ToMasterByTls(_ToMaster, SSLConnection):
    """The same over TLS."""


_known: weakref.WeakValueDictionary[str, Masters] = weakref.WeakValueDictionary()


def pool_arguments(url: str) -> dict[str, Any]:
    """What a connection pool needs to follow the master of the group. All pools of a process share what they know of it."""
    masters = _known.get(url)
    if masters is None:
        masters = _known[url] = Masters(parse_sentinel_url(url))
    parts = masters.url
    return {
        "connection_class": _ToMasterByTls if parts.tls else _ToMaster,
        "masters": masters,
        "host": f"sentinel:{parts.service}",
        "port": 0,
        "db": parts.db,
        "username": parts.username,
        "password": parts.password,
    }
