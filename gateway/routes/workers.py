"""The native API of the fleet. Never here: starting or stopping workers."""

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from gateway.auth import authenticated
from gateway.context import gateway_of, store_present
from gateway.shapes import as_json, worker_document

router = APIRouter(prefix="/v1/workers", dependencies=[Depends(authenticated), Depends(store_present)])


@router.get("")
async def list_workers(http_request: Request) -> Response:
    """Every worker whose heartbeat stands."""
    gateway = gateway_of(http_request)
    beats = await gateway.fleet.workers()
    now_ms = await gateway.now_ms()
    return as_json({"object": "list", "data": [worker_document(beat, now_ms) for beat in beats]})
