"""The native API of the waiting lines: look, pause, resume, purge. Never here: single requests."""

import asyncio

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from dispatch.errors import PenstockError
from dispatch.states import Priority
from gateway.auth import Tenant, authenticated
from gateway.context import gateway_of, store_present
from gateway.shapes import as_json, queue_document

router = APIRouter(prefix="/v1/queues", dependencies=[Depends(authenticated), Depends(store_present)])


@router.get("")
async def list_queues(http_request: Request) -> Response:
    """Every model's lines."""
    gateway = gateway_of(http_request)
    cards = await gateway.fleet.cards()
    stats = await asyncio.gather(*(gateway.queue.stats(card.name) for card in cards))
    return as_json({"object": "list", "data": [queue_document(s) for s in stats]})


@router.post("/{model:path}/pause")
async def pause(http_request: Request, model: str) -> Response:
    """Requests wait, and are still taken in."""
    return await _set_paused(http_request, model, True)


@router.post("/{model:path}/resume")
async def resume(http_request: Request, model: str) -> Response:
    """Requests meet workers again."""
    return await _set_paused(http_request, model, False)


@router.post("/{model:path}/purge")
async def purge(http_request: Request, model: str, tenant: Tenant) -> Response:
    """Cancel all of this key's requests that wait, or those of `?priority=`."""
    gateway = gateway_of(http_request)
    card = await gateway.cards.get(model)
    text = http_request.query_params.get("priority")
    if text is not None and text not in list(Priority):
        words = ", ".join(Priority)
        raise PenstockError(
            "invalid_request", f"priority: {text[:40]!r} is none of {words}.", hint=f"Use one of {words}.", param="priority"
        )
    removed = await gateway.queue.purge(card.name, Priority(text) if text else None, tenant=tenant)
    return as_json({"object": "queue", "model": card.name, "removed": removed})


@router.get("/{model:path}")
async def get(http_request: Request, model: str) -> Response:
    """One model's lines."""
    gateway = gateway_of(http_request)
    card = await gateway.cards.get(model)
    return as_json(queue_document(await gateway.queue.stats(card.name)))


async def _set_paused(http_request: Request, model: str, paused: bool) -> Response:
    gateway = gateway_of(http_request)
    card = await gateway.cards.get(model)
    await gateway.queue.pause(card.name, paused)
    return as_json(queue_document(await gateway.queue.stats(card.name)))
