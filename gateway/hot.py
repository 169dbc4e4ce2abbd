"""Routes that every request takes: a key, a store, a handler, and nothing of the framework between.

They stand among the application's routes like all others; the front (front.py) goes to them straight
(docs/decisions/0024, 0025). Never here: what they answer (routes), errors (app.py).
"""

from collections.abc import Awaitable, Callable

from fastapi import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.auth import tenant_of
from gateway.context import gateway_of

Handler = Callable[[Request, str], Awaitable[Response]]


class HotRoute(Route):
    """POST to `path`, for whoever has a key while Redis is there, as on every other page."""

    def __init__(self, path: str, handler: Handler) -> None:
        super().__init__(path, self.answer, methods=["POST"])
        self._handler = handler

    async def answer(self, http_request: Request) -> Response:
        """Check, and handle."""
        tenant = tenant_of(http_request)
        gateway_of(http_request).watch.refuse_if_away()
        return await self._handler(http_request, tenant)
