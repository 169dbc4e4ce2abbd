"""A scripted OpenAI-compatible server on a real socket: what it heard, and exactly what it says, byte by byte."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

# What the server does with one POST: (path, body, writer) -> nothing; the connection is closed afterwards.
Script = Callable[[str, dict[str, Any], asyncio.StreamWriter], Any]


@dataclass
class ForeignServer:
    script: Script
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "their-model", "max_model_len": 4096}])
    models_status: int = 200
    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    open: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self.handle(reader, writer))
        self.open.add(task)
        task.add_done_callback(self.open.discard)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.answer(reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        self.headers.append(headers)
        body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"{}")
        if method == "GET":
            respond(writer, self.models_status, {"object": "list", "data": self.models})
            return
        self.heard.append((path, body))
        ended = asyncio.ensure_future(self.script(path, body, writer))
        gone = asyncio.ensure_future(reader.read())
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            self.hung_up.set()
        for task in (ended, gone):
            task.cancel()
        await asyncio.gather(ended, gone, return_exceptions=True)


@contextlib.asynccontextmanager
async def foreign(script: Script, **more: Any) -> AsyncIterator[ForeignServer]:
    server = ForeignServer(script, **more)
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    async with listening:
        yield server
        for task in tuple(server.open):
            task.cancel()
        await asyncio.gather(*server.open, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next turn


def respond(writer: asyncio.StreamWriter, status: int, body: Any) -> None:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + data)


def open_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")


def event(writer: asyncio.StreamWriter, data: Any) -> None:
    writer.write(f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n".encode())


def says(*texts: str, finish: str | None = "stop", usage: dict[str, int] | None = None, done: bool = True) -> Script:
    """A chat answered in these pieces."""

    async def script(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        open_stream(writer)
        writer.write(b": a comment\r\n\r\n")
        for text in texts:
            event(writer, {"choices": [{"index": 0, "delta": {"content": text}, "text": text}]})
            await writer.drain()
        if finish:
            event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if usage:
            event(writer, {"choices": [], "usage": usage})
        if done:
            event(writer, "[DONE]")

    return script


def refuses(status: int, body: Any) -> Script:
    async def script(path: str, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        respond(writer, status, body)

    return script
