"""Why a request is where it is: for people and programs. Never here: what it goes by (dispatch/reasons.py)."""

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from dispatch.explaining import Explaining
from dispatch.keys import ShardKeys
from dispatch.states import HELD, RequestState
from gateway.auth import Tenant, authenticated
from gateway.context import Gateway, gateway_of, store_present
from gateway.explained import backoff_document, ended_document, held_document, waiting_document
from gateway.pools import last_changes, read_pools
from gateway.scaled import Help
from gateway.shapes import as_json
from gateway.submitting import end_from, owned_record

router = APIRouter(prefix="/v1/requests", dependencies=[Depends(authenticated), Depends(store_present)])


@router.get("/{request_id}/explain")
async def explain(http_request: Request, request_id: str, tenant: Tenant) -> Response:
    """Where it stands and why; for one that waits, each worker and why not that one."""
    gateway = gateway_of(http_request)
    record = await owned_record(gateway, request_id, tenant)
    reading = Explaining(gateway.redis, ShardKeys(gateway.queue.shard))
    around = await reading.surroundings(record) if record.state is RequestState.QUEUED else None
    if around is not None and around.position is None:
        record = await owned_record(gateway, request_id, tenant)  # far back, or it left its line meanwhile
    if around is not None and record.state is RequestState.QUEUED:
        document = waiting_document(record, around, gateway.queue.rules, await _help(gateway, record.model))
    elif record.state is RequestState.WAITING:
        document = backoff_document(record, await reading.now_ms())
    elif record.state in HELD:
        document = held_document(record, await reading.now_ms())
    else:
        data = await reading.end(record)
        document = ended_document(record, None if data is None else end_from(data), await reading.now_ms())
    return as_json(document, headers={"cache-control": "no-store"})


async def _help(gateway: Gateway, model: str) -> Help:
    """What the autoscaler may do for a model; nothing more is read where it has no pool of it."""
    pools = await read_pools(gateway, model=model)
    if not pools:
        return Help()
    card = await gateway.fleet.card(model)
    changes = await last_changes(gateway, [view.status.pool for view in pools])
    return Help(pools, changes, card.max_cost_tokens if card else 0)
