"""Talking to a gateway over HTTP: calls, server-sent events that resume, errors in the command line's form.

Never here: what is asked and how it is shown (commands/).
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2

from penstock.failures import FAILED, TIMEOUT, UNREACHABLE, USAGE, Failure

_RECONNECTS = 8
_SILENCE_S = 60.0
"""The gateway pings every 15 s: a stream silent for longer than this is dead."""


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event."""

    id: str
    kind: str
    data: str

    def json(self) -> Any:
        """Its data as JSON."""
        return json.loads(self.data)


class Gateway:
    """One gateway, by its base URL."""

    def __init__(self, server: str, api_key: str = "", *, timeout_s: float = 30.0) -> None:
        if not server.startswith(("http://", "https://")):
            raise Failure(f"{server!r} is no URL of a gateway", "", "Write it like http://127.0.0.1:8000", USAGE)
        self.server = server
        host = urlsplit(server).hostname or ""
        self._client = httpx2.Client(
            base_url=server,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(timeout_s, connect=5.0),
            # A proxy of the environment must not be asked for what stands on this machine.
            trust_env=host not in ("127.0.0.1", "localhost", "::1"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON answer (None if it has no body). Raises Failure."""
        given = {name: value for name, value in (params or {}).items() if value is not None}
        response = self._answered(method, path, json=body, params=given, headers=dict(headers or {}))
        return response.json() if response.content else None

    def text(self, path: str) -> str:
        """A page that is no JSON. Raises Failure."""
        return str(self._answered("GET", path).text)

    def _answered(self, method: str, path: str, **kwargs: Any) -> httpx2.Response:
        try:
            response = self._client.request(method, path, **kwargs)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code >= 400:
            raise _refused(response.status_code, response.content)
        return response

    def stream(
        self, path: str, body: Any, headers: Mapping[str, str] | None = None, *, deadline: float | None = None
    ) -> Iterator[Event]:
        """POST and yield events until `[DONE]`. The first is a `headers` event with the answer's headers. Breaks are final."""
        try:
            timeout = _stream_timeout(deadline)
            with self._client.stream("POST", path, json=body, headers=dict(headers or {}), timeout=timeout) as response:
                if response.status_code >= 400:
                    raise _refused(response.status_code, response.read())
                yield Event("", "headers", json.dumps(dict(response.headers)))
                for event in _events(response.iter_bytes(), deadline):
                    if event.data == "[DONE]":
                        return
                    yield event
        except httpx2.TransportError as error:
            _check(deadline)
            raise self._unreachable(error) from error

    def events(self, request: str, *, after: str = "", deadline: float | None = None) -> Iterator[Event]:
        """A request's events to its end, resumed where they broke off; `deadline` is by time.monotonic()."""
        path = f"/v1/requests/{request}/events"
        broken = 0
        while True:
            headers = {"last-event-id": after} if after else {}
            try:
                with self._client.stream("GET", path, headers=headers, timeout=_stream_timeout(deadline)) as response:
                    if response.status_code >= 400:
                        raise _refused(response.status_code, response.read())
                    if response.status_code == 204:  # it has ended, and we have it all
                        return
                    for event in _events(response.iter_bytes(), deadline):
                        after = event.id or after
                        broken = 0
                        yield event
                        if event.kind == "end":
                            return
                why: Exception = ConnectionError("the stream ended before its end")
            except httpx2.TransportError as error:
                why = error
            _check(deadline)
            broken += 1
            if broken > _RECONNECTS:
                raise self._unreachable(why) from why
            time.sleep(min(2.0, 0.1 * 2**broken))

    def _unreachable(self, error: Exception) -> Failure:
        if isinstance(error, httpx2.ReadTimeout):
            return Failure(
                f"The gateway at {self.server} took too long to answer", str(error), "Look at its log, or try again", TIMEOUT
            )
        why = str(error) or type(error).__name__
        to_do = "Start it with `penstock up`, or name another one with --server URL (or PENSTOCK_SERVER)"
        return Failure(f"Cannot reach the gateway at {self.server}", why, to_do, UNREACHABLE)


def _events(pieces: Iterator[bytes], deadline: float | None = None) -> Iterator[Event]:
    """Split at newlines only: a library's line splitter also cuts at U+2028, which may stand inside a text."""
    rest = b""
    identity, kind, data = "", "message", list[str]()
    for piece in pieces:
        # Pings arrive here too, so a limit holds although nothing is said.
        _check(deadline)
        *lines, rest = (rest + piece).split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r").decode("utf-8")
            if not line:
                if data:
                    yield Event(identity, kind, "\n".join(data))
                identity, kind, data = "", "message", []
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "id":
                identity = value
            elif name == "event":
                kind = value
            elif name == "data":
                data.append(value)


def _stream_timeout(deadline: float | None = None) -> httpx2.Timeout:
    left = _SILENCE_S if deadline is None else max(0.05, min(_SILENCE_S, deadline - time.monotonic()))
    return httpx2.Timeout(30.0, connect=5.0, read=left)


def _check(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise Failure("It did not end in time", "--timeout is over", "", TIMEOUT)


def _refused(status: int, content: bytes) -> Failure:
    try:
        body = json.loads(content)
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    title = body.get("title") or f"The gateway answered {status}"
    why = body.get("detail") or content.decode("utf-8", "replace")[:200]
    hint = str(body.get("hint") or "")
    if status == 401:
        hint = "Give the key with --api-key or PENSTOCK_API_KEY"
    exit_code = {400: USAGE, 401: USAGE, 404: FAILED, 422: USAGE, 504: TIMEOUT}.get(status, FAILED)
    return Failure(str(title), str(why), hint, exit_code)
