"""The gateway as an ASGI application: what it is built from, what runs beside the handlers, and where errors go.

Never here: sockets and signals (serve.py), the shape of an error (problems.py), any route.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT, as_penstock, is_unreachable
from dispatch.fleet import Fleet
from dispatch.history import read_history
from dispatch.lengths import Lengths
from dispatch.metrics import GatewayMetrics
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.scale_store import ScaleStore
from dispatch.settings import Settings
from dispatch.tasks import cancelled
from gateway.auth import Keys
from gateway.context import Cards, Gateway
from gateway.hot import HotRoute
from gateway.lengths import KnownLengths
from gateway.problems import CLIENT_LEFT, for_status, is_our_fault, problem
from gateway.promises import Promises
from gateway.routes import dead, explain, openai, ops, queues, requests, scale, workers
from gateway.streaming import Feed
from gateway.tokenizing import Tokenizers
from gateway.watching import Watch

log = logging.getLogger("penstock.gateway")

_SWEEP_EVERY_S = 0.25
_AGAIN_S = 1.0
_READERS_FIRST_S = 1.0


def build(settings: Settings) -> FastAPI:
    """The application. It starts, and answers 503, also while Redis is away."""
    traced = any(name.startswith("OTEL_") for name in os.environ)  # else each request asks anew whether somebody wants traces
    app = FastAPI(
        title="Penstock", openapi_url=None, docs_url=None, redoc_url=None, lifespan=_lifespan, redirect_slashes=False,
        telemetry={"tracing": traced, "metrics": traced, "logs": traced},
    )  # fmt: skip
    app.state.settings = settings
    app.state.traced = traced
    app.state.keys = Keys(key.get_secret_value() for key in settings.api_keys)
    app.router.routes += [
        HotRoute("/v1/requests", requests.post),
        HotRoute("/v1/chat/completions", openai.chat_completions),
        HotRoute("/v1/completions", openai.completions),
    ]
    for page in (ops, requests, explain, dead, queues, workers, scale, openai):
        app.include_router(page.router)
    for kind in (PenstockError, STORE_FAULT, HTTPException, Exception):
        app.add_exception_handler(kind, _on_error)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    rules = settings.queue.rules()
    url = redis_url(settings)
    redis, blocking, watching = connect(url), connect(url, max_connections=2), connect(url, max_connections=1)
    queue, fleet = Queue(redis, rules, wait_replica_ms=settings.redis.wait_replica_ms), Fleet(redis)
    feed = Feed(queue, Queue(blocking, rules), buffer_bytes=settings.gateway.reader_buffer_bytes)
    watch = Watch(lambda: read_history(watching))
    promises = Promises(queue, watch)

    def on_change() -> None:
        promises.history_changed()
        feed.doubt_all()

    watch.on_change, feed.on_end, feed.unsettled = on_change, promises.forget, promises.unsettled
    scaling = ScaleStore(redis)
    gateway = Gateway(
        settings=settings,
        redis=redis,
        queue=queue,
        fleet=fleet,
        feed=feed,
        watch=watch,
        promises=promises,
        cards=Cards(fleet, scaling),
        tokenizers=Tokenizers(fleet),
        lengths=KnownLengths(Lengths(redis)),
        scale=scaling,
        metrics=GatewayMetrics(_version()),
        version=_version(),
    )
    app.state.gateway = gateway
    await watch.look()  # so that the first request already knows
    roles = {
        "watch": watch.run,
        "sweep": lambda: _sweep(queue, watch),
        "feed": feed.run,
        "keep reading": feed.keep,
        "keep promises": promises.run,
    }
    tasks = [asyncio.create_task(_for_ever(name, role), name=name) for name, role in roles.items()]
    log.info("Started the gateway", extra={"gateway": feed.gateway})
    try:
        yield
    finally:
        feed.close_all()
        await feed.settle()
        await cancelled(*tasks)
        for client in (watching, blocking, redis):
            await client.aclose()
        log.info("Stopped the gateway", extra={"gateway": feed.gateway})


async def _sweep(queue: Queue, watch: Watch) -> None:
    """Move every request whose time has come; harmless beside other gateways."""
    while True:
        try:
            await queue.sweep()
        except STORE_FAULT as error:
            if not is_unreachable(error):
                log.warning("Cannot sweep", extra={"error": type(error).__name__})
            await asyncio.sleep(_AGAIN_S)
        if watch.away:
            await watch.until_here()
            # First every gateway says that it still reads: a request whose reader was away with Redis is not orphaned.
            await asyncio.sleep(_READERS_FIRST_S)
        await asyncio.sleep(_SWEEP_EVERY_S)


async def _for_ever(name: str, role: Callable[[], Awaitable[None]]) -> None:
    """A bug in a background role is logged, and the role goes on: a gateway without it would look healthy and do nothing."""
    while True:
        try:
            await role()
        except Exception:
            log.exception("A background role failed", extra={"role": name})
        await asyncio.sleep(_AGAIN_S)


def redis_url(settings: Settings) -> str:
    """Where Redis is. Raises PenstockError("bad_setting") when nobody said."""
    if not settings.redis.url:
        raise PenstockError(
            "bad_setting",
            "The gateway was not told where Redis is.",
            hint="Set PENSTOCK_REDIS__URL (redis://host:6379/0), or run `penstock up`, which starts a server of its own.",
            param="redis.url",
        )
    return settings.redis.url


def answer_to(http_request: Request, error: Exception) -> Response:
    """THE mapping from an error to its answer."""
    metrics: GatewayMetrics = http_request.app.state.gateway.metrics
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_LEFT)
    if isinstance(error, HTTPException):
        return problem(for_status(error.status_code, str(error.detail)), headers=error.headers)
    if isinstance(error, STORE_FAULT):
        ours = as_penstock(error)
        metrics.reject(ours.code)
        if ours.code == "internal_error":
            log.error("Redis refused a command", exc_info=error)
        return problem(ours)
    if not isinstance(error, PenstockError):
        log.error("A handler failed", exc_info=error, extra={"method": http_request.method})
        return problem(for_status(500, ""))
    metrics.reject(error.code)
    if is_our_fault(error) and error.kind.status >= 500 and error.code != "draining":
        log.warning("Answered with an error", extra={"code": error.code, "error": error.message})
    return problem(error)


async def _on_error(http_request: Request, error: Exception) -> Response:
    return answer_to(http_request, error)


def _version() -> str:
    try:
        return version_of("penstock")
    except PackageNotFoundError:
        return "unknown"
