"""One POST to a URL that a client named: to the address that was looked at, and nowhere else.

The name is resolved once; if any address it has is not on the open internet, none is connected to. No redirects, no proxies,
one time limit over all of it, and little is read of the answer. Never here: what is sent, when it is tried again.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

import httpx2

from autoscaler.webhooks.backoff import retry_after_of
from dispatch.addresses import is_public

MOST_READ_BYTES = 64 * 1024
_DRAIN_S = 0.5
_MOST_ADDRESSES = 3
_PORTS = {"http": 80, "https": 443}

# They would log the whole URL.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `status` 0: nothing did, and `error` says why in a word. `read_bytes`: of the answer's body."""

    status: int
    error: str
    took_ms: int
    retry_after_s: float | None = None
    read_bytes: int = 0


class _Refused(Exception):
    """The name leads to where nothing is sent."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, best first."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


async def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    timeout_s: float,
    allow_private: bool = False,
    resolve: Resolve = resolve,
) -> Answer:
    """Send it once. Never raises for what the URL, the network or the receiver do."""
    started = time.monotonic()

    def took_ms() -> int:
        return int((time.monotonic() - started) * 1000)

    try:
        async with asyncio.timeout(timeout_s):
            answer = await _post(url, body, headers, allow_private, resolve)
    except TimeoutError:
        return Answer(0, "timeout", took_ms())
    except _Refused:
        return Answer(0, "address_refused", took_ms())
    except (socket.gaierror, UnicodeError):
        return Answer(0, "name_not_found", took_ms())
    except httpx2.ConnectError as error:
        return Answer(0, "tls_failed" if _is_tls(error) else "connect_failed", took_ms())
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError):
        return Answer(0, "broken_answer", took_ms())
    status, retry_after_s, read = answer
    return Answer(status, "" if 200 <= status < 300 else f"http_{status}", took_ms(), retry_after_s, read)


async def _post(
    url: str, body: bytes, headers: Mapping[str, str], allow_private: bool, resolve: Resolve
) -> tuple[int, float | None, int]:
    target = httpx2.URL(url)
    port = target.port or _PORTS[target.scheme]
    addresses = await resolve(target.host, port)
    if not addresses or not (allow_private or all(is_public(each) for each in addresses)):
        raise _Refused
    sent = {
        "host": target.netloc.decode("ascii"),
        "content-type": "application/json",
        "user-agent": "penstock-webhooks",
        "accept-encoding": "identity",
        "connection": "close",
        **headers,
    }
    # The time limit is one over all: asyncio's.
    async with httpx2.AsyncClient(verify=_tls(), trust_env=False, follow_redirects=False, timeout=None, http2=False) as client:
        failed: httpx2.ConnectError | None = None
        for address in addresses[:_MOST_ADDRESSES]:
            asked = client.build_request("POST", target.copy_with(host=address), content=body, headers=sent)
            asked.extensions["sni_hostname"] = target.host
            try:
                answer = await client.send(asked, stream=True)
            except httpx2.ConnectError as error:
                failed = error
                continue
            try:
                return answer.status_code, _retry_after(answer), await _read_little(answer)
            finally:
                await answer.aclose()
        assert failed is not None
        raise failed


def _retry_after(answer: httpx2.Response) -> float | None:
    return retry_after_of(answer.headers.get("retry-after"), datetime.now(UTC))


async def _read_little(answer: httpx2.Response) -> int:
    """So that the receiver sees its answer taken. The status is what counts: a body that is long or slow takes nothing away."""
    read = 0
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(_DRAIN_S):
            async for piece in answer.aiter_raw(8192):
                read += len(piece)
                if read >= MOST_READ_BYTES:
                    break
    return read


@cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
