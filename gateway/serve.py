"""Running the gateway: socket, signals, draining. Never here: what it answers (app.py, routes)."""

import asyncio
import logging
import signal
import socket
import time
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dispatch.errors import PenstockError
from dispatch.garbage import rarely_collect
from dispatch.processes import die_with_parent
from dispatch.settings import Settings
from gateway.app import answer_to, build, redis_url
from gateway.auth import check_bind
from gateway.context import Gateway
from gateway.front import Front
from gateway.joining import JoiningTransport
from gateway.leaving import EXTENSION as LEAVING_EXTENSION
from gateway.leaving import Leaving
from gateway.sse import ABORT_EXTENSION

log = logging.getLogger("penstock.gateway")

_BACKLOG = 2048
_CLOSE_WITHIN_S = 2  # after the streams were told to end
_LOOK_EVERY_S = 0.05


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Returns the exit code."""
    die_with_parent()
    check_bind(settings)
    redis_url(settings)
    bound = bind(settings)
    host, port = settings.gateway.host, bound.getsockname()[1]
    server = GatewayServer(build(settings), settings)

    def end(*_: object) -> None:
        server.should_exit = True

    # Until uvicorn puts its own handlers in their place, these count; it raises the signals it caught once more when it is
    # done, and by then they have been obeyed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    log.info("Listening", extra={"host": host, "port": port})
    rarely_collect()
    server.run(sockets=[bound])
    return 0 if server.started else 1


def bind(settings: Settings) -> socket.socket:
    """The listening socket. Raises PenstockError("bad_setting") when the port is taken or the address not ours."""
    host, port = settings.gateway.host, settings.gateway.port
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise PenstockError(
            "bad_setting",
            f"Cannot listen on {host} port {port}: {(error.strerror or str(error)).lower()}.",
            hint="Choose another with --port (PENSTOCK_GATEWAY__PORT), or stop what listens there.",
            param="gateway.port",
        ) from error
    bound.set_inheritable(False)
    return bound


class GatewayServer(uvicorn.Server):
    """uvicorn, with a drain in between: not ready and nothing new, while open streams go on."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                Front(app, answer_to, traced=app.state.traced),
                http=_Protocol,
                ws="none",
                loop="uvloop",
                lifespan="on",
                backlog=_BACKLOG,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_CLOSE_WITHIN_S,
            )
        )
        self._app = app
        self._drain_timeout_s = settings.gateway.drain_timeout_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, tell what is left to end, close."""
        gateway: Gateway = self._app.state.gateway
        gateway.draining = True
        log.info("Draining", extra={"readers": gateway.feed.open_readers, "timeout_s": self._drain_timeout_s})
        until = time.monotonic() + self._drain_timeout_s
        # uvicorn's force_exit is a plain flag that a signal handler sets: there is nothing to await.
        while gateway.feed.open_readers and time.monotonic() < until and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY_S)
        if gateway.feed.open_readers:
            log.info("Closing streams that are still open", extra={"readers": gateway.feed.open_readers})
        gateway.feed.close_all()
        await super().shutdown(sockets)


class _Protocol(HttpToolsProtocol):
    """Tells of clients that leave, and lets a response drop its connection at once: closing would wait for a client that does
    not read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, JoiningTransport(transport)))
        self._leaving = Leaving()
        self._extensions = {ABORT_EXTENSION: self._drop, LEAVING_EXTENSION: self._leaving}

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._leaving.happened()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Any = self.scope
        scope["extensions"] = self._extensions

    def on_message_complete(self) -> None:
        super().on_message_complete()
        # A long body paused reading until somebody asks for more: nobody does, and a client's end would not be read.
        if not self.pipeline:
            self.flow.resume_reading()

    def _drop(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.abort()
