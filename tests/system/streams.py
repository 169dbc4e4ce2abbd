"""Reading event streams as a client does, strictly: whatever is not in order fails."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx


@dataclass
class Event:
    id: str
    name: str
    data: Any

    @property
    def seq(self) -> int:
        return int(self.id.split("-")[0])


@dataclass
class Heard:
    """What one client has of a request's log."""

    events: list[Event] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(e.data["text"] for e in self.events if e.name == "chunk")

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].name == "end"

    @property
    def last_id(self) -> str:
        return self.events[-1].id if self.events else ""

    def check_dense(self) -> None:
        seqs = [e.seq for e in self.events if e.name in ("chunk", "note", "end")]
        assert seqs == list(range(1, len(seqs) + 1)), seqs


async def frames(reply: httpx.Response) -> AsyncGenerator[tuple[str, str, str], None]:
    """The events of an open stream as (id, name, data), until it closes; an id holds until the next one."""
    event_id, name, data = "", "", ""
    async for line in reply.aiter_lines():
        if line.startswith("id: "):
            event_id = line[4:]
        elif line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data = line[6:]
        elif not line and data:
            yield event_id, name, data
            name, data = "", ""


async def events(client: httpx.AsyncClient, url: str, last_id: str = "") -> AsyncIterator[Event]:
    """The events of a stream until it closes."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with client.stream("GET", url, headers=headers) as reply:
        assert reply.status_code == 200, (reply.status_code, await reply.aread())
        async for event_id, name, data in frames(reply):
            yield Event(event_id, name, json.loads(data))


async def listen(client: httpx.AsyncClient, url: str, heard: Heard, *, until_chunks: int = 10**9) -> None:
    """Add what a stream brings to `heard`, until its end or so many chunks."""
    async for event in events(client, url, heard.last_id):
        if event.name in ("chunk", "note", "end"):
            heard.events.append(event)
        if event.name == "end" or sum(e.name == "chunk" for e in heard.events) >= until_chunks:
            return
