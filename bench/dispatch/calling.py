"""A light HTTP client for the closed loop, keep-alive. `python -m bench.dispatch.calling URL BODY [HEADER...]`.

More ports, comma-separated, are used in turn, a connection each. Never here: what answers.
"""

import asyncio
import sys
from urllib.parse import urlsplit

import uvloop

from bench.dispatch.loop import serve_rounds


class Caller:
    """A pool of connections to one path."""

    def __init__(self, url: str, body: bytes, headers: str = "") -> None:
        parts = urlsplit(url)
        host, _, ports = parts.netloc.partition(":")
        self._host, self._ports = host, [int(port) for port in ports.split(",")]
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._request = (head + headers + "\r\n").encode() + body
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._opened = 0

    async def call(self) -> None:
        if self._free:
            reader, writer = self._free.pop()
        else:
            self._opened += 1
            reader, writer = await asyncio.open_connection(self._host, self._ports[self._opened % len(self._ports)])
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        if head[9:12] != b"200":
            raise RuntimeError(head.decode())
        low = head.lower()
        at = low.index(b"content-length:") + 15
        await reader.readexactly(int(low[at : low.index(b"\r\n", at)]))
        self._free.append((reader, writer))


if __name__ == "__main__":
    uvloop.run(serve_rounds(Caller(sys.argv[1], sys.argv[2].encode(), "".join(h + "\r\n" for h in sys.argv[3:])).call))
