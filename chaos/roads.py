"""A role's way to the store: one proxy for each server and sentinel, all misbehaving together.

Sentinels name addresses; on their way to a role these become the addresses of that role's own proxies, so that a failover
leads it through another proxy and not past all of them. Never here: when to misbehave (faults.py).
"""

import random
from collections.abc import Sequence
from typing import Any

from chaos.proxy import Proxy


class Road:
    """`servers` and `sentinels` are their ports; without sentinels there is one server."""

    def __init__(self, servers: Sequence[int], sentinels: Sequence[int], service: str, rng: random.Random) -> None:
        self._servers = [Proxy(port, rng) for port in servers]
        self._ports = tuple(servers)
        self._sentinel_ports = tuple(sentinels)
        self._sentinels: list[Proxy] = []
        self._service = service
        self._rng = rng

    async def start(self) -> None:
        """Listen everywhere."""
        for proxy in self._servers:
            await proxy.start()
        names = {str(port).encode(): str(p.port).encode() for port, p in zip(self._ports, self._servers, strict=True)}
        if self._sentinel_ports and any(len(ours) != len(theirs) for theirs, ours in names.items()):
            raise RuntimeError("a proxy's port must have as many digits as its server's: replies keep their length")
        for port in self._sentinel_ports:
            proxy = Proxy(port, self._rng, renamed=names)
            await proxy.start()
            self._sentinels.append(proxy)

    @property
    def url(self) -> str:
        """What the role is given."""
        if not self._sentinels:
            return f"redis://127.0.0.1:{self._servers[0].port}/0"
        return f"redis+sentinel://{','.join(f'127.0.0.1:{p.port}' for p in self._sentinels)}/{self._service}"

    def misbehave(self, **how: Any) -> None:
        """All proxies at once."""
        for proxy in self._all:
            for name, value in how.items():
                setattr(proxy.now, name, value)

    def heal(self) -> None:
        """All proxies at once."""
        for proxy in self._all:
            proxy.heal()

    def cut(self) -> int:
        """Break every connection; how many there were."""
        return sum(proxy.cut() for proxy in self._all)

    async def close(self) -> None:
        """Stop listening."""
        for proxy in self._all:
            await proxy.close()

    @property
    def _all(self) -> list[Proxy]:
        return [*self._servers, *self._sentinels]
