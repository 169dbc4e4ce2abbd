"""Routes that every request takes: a key, a store, a handler, and nothing of the framework between.

The framework's own routes solve dependencies for each call (docs/decisions/0024). Never here: what they answer (routes), errors
(app.py).
"""

from collections.abc import Awaitable, Callable

from fastapi import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.auth import authenticated
from gateway.context import store_present


def hot_post(path: str, handler: Callable[[Request, str], Awaitable[Response]]) -> Route:
    """POST to `path`, for whoever has a key while Redis is there, as on every other page."""

    async def endpoint(http_request: Request) -> Response:
        http_request.scope["route"] = route  # for the access line; the framework's own routes say so themselves
        tenant = await authenticated(http_request)
        await store_present(http_request)
        return await handler(http_request, tenant)

    route = Route(path, endpoint, methods=["POST"])
    return route
