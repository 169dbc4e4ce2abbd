"""A receiver of webhooks on this machine: keeps what came, and answers as it is told."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

Answer = bytes | Callable[[asyncio.StreamWriter], object]


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}", "connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


OK = answer(204)


@dataclass(frozen=True)
class Got:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """`answers` are given in order, the last one for ever; None: never an answer."""

    answers: list[bytes | None] = field(default_factory=lambda: [OK])
    drip_s: float = 0.0
    got: list[Got] = field(default_factory=list)
    connections: int = 0
    asked_names: list[str | None] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            number = min(len(self.got), len(self.answers) - 1)
            self.got.append(Got(first.split(" ")[1], headers, body))
            said = self.answers[number]
            if said is None:
                await reader.read()  # until the other side gives up
                return
            for byte in [said] if not self.drip_s else [said[n : n + 1] for n in range(len(said))]:
                writer.write(byte)
                await writer.drain()
                await asyncio.sleep(self.drip_s)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            with contextlib.suppress(ConnectionError):
                writer.close()

    @contextlib.asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["Receiver"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
