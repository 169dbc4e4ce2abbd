"""The front: the id of each HTTP exchange, the routes that every request takes, and one access line an answer.

All else goes on to the framework. Its layers (routing, exit stacks, a handler of exceptions each) do nothing for a handler that
reads its own body and returns a response: such a route is answered here (docs/decisions/0025).
Never here: what a route answers (routes), what follows from an error (app.py).
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable

from fastapi import FastAPI, Request
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from dispatch.errors import PenstockError
from dispatch.log_lines import Lines
from gateway.hot import HotRoute
from gateway.routes import ops

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Front:
    """The application as the server calls it. Echoes or mints X-Request-Id; writes no access line for health and metrics.

    `answer` is THE mapping from an error to its answer. `traced`: the framework tells of each exchange, so all go through it.
    """

    def __init__(self, app: FastAPI, answer: Callable[[Request, Exception], Response], *, traced: bool = False) -> None:
        self._app = app
        self._traced = traced
        self._answer = answer
        self._hot = {route.path: route for route in app.routes if isinstance(route, HotRoute)}
        self._lines = Lines(logging.getLogger("penstock.gateway"), "Answered")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP exchange, or the application's whole life."""
        if scope["type"] != "http":
            try:
                await self._app(scope, receive, send)
            finally:
                self._lines.flush()
            return
        started = time.monotonic()
        exchange = _Exchange(scope, send)
        hot = self._hot.get(scope["path"]) if scope["method"] == "POST" and not self._traced else None
        try:
            if hot is None:
                await self._app(scope, receive, exchange.send)
            else:
                await self._at_once(hot, exchange, receive)
        except asyncio.CancelledError:
            if not exchange.status:  # else its answer has begun
                await self._answer(Request(scope), _broken_off())(scope, receive, exchange.send)
            raise
        finally:
            if scope["path"] not in ops.PATHS:
                self._lines.write(
                    {
                        "method": scope["method"],
                        "route": getattr(scope.get("route"), "path", "unknown"),
                        "status": exchange.status,
                        "duration_s": round(time.monotonic() - started, 4),
                        "http_request_id": exchange.id if exchange.is_minted else self._lines.masked(exchange.id),
                    }
                )

    async def _at_once(self, hot: HotRoute, exchange: "_Exchange", receive: Receive) -> None:
        scope = exchange.scope
        scope["app"], scope["route"] = self._app, hot
        http_request = Request(scope, receive)
        try:
            response = await hot.answer(http_request)
        except Exception as error:
            response = self._answer(http_request, error)
        exchange.status = response.status_code
        response.raw_headers.append((b"x-request-id", exchange.id.encode("latin-1")))
        await response(scope, receive, exchange.send_raw)


def _broken_off() -> PenstockError:
    return PenstockError(
        "draining",
        "This gateway closed before it could answer.",
        hint="Ask another gateway. With the same Idempotency-Key a request is done once.",
    )


class _Exchange:
    """One request and its answer: its id, and the status once it is known."""

    __slots__ = ("id", "is_minted", "scope", "send_raw", "status")

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.send_raw = send
        self.status = 0
        sent = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
        self.is_minted = not _REQUEST_ID.fullmatch(sent)
        self.id = f"req_{secrets.token_hex(12)}" if self.is_minted else sent

    async def send(self, message: Message) -> None:
        """For the framework: its answer goes out with the id, and its status is noted."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.id
        await self.send_raw(message)
