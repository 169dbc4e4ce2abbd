"""A fleet of `sim` worker processes behind a real gateway and a real server, and requests played on it over HTTP streams.

For the benchmarks that compare the live fleet with the simulated one. Never here: what is played, what is made of the figures.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx

from penstock.simulator.fleet import Member
from penstock.simulator.trace import Arrival
from tests.system.house import House, Role, house
from tests.system.streams import events

_BYTES_PER_TOKEN = 4  # as dispatch.pricing counts where there is no tokenizer


@dataclass
class Played:
    """One request as its client saw it; moments in seconds of `time.monotonic`. `said`: when how many tokens came."""

    arrival: Arrival
    sent_at: float = 0.0
    first_at: float = 0.0
    ended_at: float = 0.0
    state: str = ""
    request: str = ""
    said: list[tuple[float, int]] = field(default_factory=list)
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LiveFleet:
    """Processes that stand and are ready. `names`: worker id -> name in the fleet."""

    home: House
    gateway: Role
    names: Mapping[str, str]
    client: httpx.AsyncClient

    async def play(self, played: Played, strategy: str, index: int, *, ignore_eos: bool = True) -> Played:
        """Submit one request and read its stream to the end."""
        a = played.arrival
        body = {
            "model": "demo",
            "prompt": prompt_of(a.prompt_tokens, index),
            "max_tokens": a.answer_tokens,
            "ignore_eos": ignore_eos,
        }
        played.sent_at = time.monotonic()
        reply = await self.client.post(self.gateway.url + "/v1/requests", json=body, headers={"X-Penstock-Strategy": strategy})
        assert reply.status_code == 202, reply.text
        played.request = reply.json()["id"]
        async for event in events(self.client, f"{self.gateway.url}/v1/requests/{played.request}/events"):
            now = time.monotonic()
            if event.name == "chunk":
                played.first_at = played.first_at or now
                played.said.append((now, len(event.data["tokens"])))
            elif event.name == "end":
                played.ended_at, played.state = now, event.data["state"]
        return played

    async def play_trace(self, trace: Sequence[Arrival], strategy: str) -> list[Played]:
        """Each request at its moment."""
        started_at = time.monotonic()

        async def one(index: int, arrival: Arrival) -> Played:
            await asyncio.sleep(max(0.0, started_at + arrival.at_s - time.monotonic()))
            return await self.play(Played(arrival), strategy, index)

        return await asyncio.gather(*(one(i, a) for i, a in enumerate(trace)))

    async def look_back(self, played: Sequence[Played]) -> None:
        """Ask what the queue knows of each: above all its worker."""
        for p in played:
            if p.request:
                p.record = (await self.client.get(f"{self.gateway.url}/v1/requests/{p.request}")).json()

    async def workers(self) -> list[dict[str, Any]]:
        """All heartbeats that stand."""
        found: list[dict[str, Any]] = (await self.client.get(self.gateway.url + "/v1/workers")).json()["data"]
        return found

    def name_of(self, played: Played) -> str:
        """Who worked it (last)."""
        return self.names[played.record["worker"]]

    def log_lines(self, word: str) -> int:
        """How often the workers said it."""
        return sum(role.log.read_text().count(word) for role in self.home.roles)


def prompt_of(tokens: int, index: int) -> str:
    """Text that counts as so many tokens; no two are the same."""
    head = f"{index} "[: tokens * _BYTES_PER_TOKEN]
    return head + "w" * (tokens * _BYTES_PER_TOKEN - len(head))


@contextlib.asynccontextmanager
async def live_fleet(
    fleet: Sequence[Member], speed: float, server: str = "redis", **environment: str
) -> AsyncIterator[LiveFleet]:
    """The fleet, each member a process whose GPU runs at `speed`."""
    with _standing(fleet, speed, server, environment) as (home, gateway, names):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(timeout=None, limits=limits) as client:
            yield LiveFleet(home, gateway, names, client)


@contextlib.contextmanager
def _standing(
    fleet: Sequence[Member], speed: float, server: str, environment: Mapping[str, str]
) -> Iterator[tuple[House, Role, dict[str, str]]]:
    with house(server) as home:
        gateway = home.gateway(**environment)
        pids = {}
        for member in fleet:
            flags = ("--engine", "sim", "--gpu", member.gpu.name, "--speed", f"{speed:g}")
            pids[home.worker(*flags, **environment).process.pid] = member.name
        home.until_ready(gateway, len(fleet))
        yield home, gateway, {w["id"]: pids[w["pid"]] for w in home.get(gateway, "/v1/workers")["data"]}
