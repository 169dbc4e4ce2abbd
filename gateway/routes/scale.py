"""The native API of pools: how many workers and why, what was decided, what people set; and one number for other scalers.

Never here: deciding (the autoscaler), words (scaled_words.py). Pools belong to nobody: every key may see and set them.
"""

import re
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request
from msgspec import Meta
from starlette.responses import Response

from dispatch.errors import PenstockError
from dispatch.scaling import PoolOverride, PoolStatus
from gateway.auth import authenticated
from gateway.bodies import parse_object, read_body
from gateway.context import Gateway, gateway_of, store_present
from gateway.fields import parse
from gateway.pools import last_changes, read_pool, read_pools
from gateway.queries import LARGEST_PAGE, PAGE, number
from gateway.scaled import decision_document, explained_pool, pool_document, scale_document
from gateway.shapes import as_json, etag_of

router = APIRouter(dependencies=[Depends(authenticated), Depends(store_present)])

_SCANNED = 5_000
_ENTRY = re.compile(r"[0-9]{1,15}-[0-9]{1,10}")
_Workers = Annotated[int, Meta(ge=0, le=10_000)]


class PoolFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """PATCH /v1/pools/{pool}. What is absent stays; null is as in the settings again; `reset` does that for all but the pause."""

    min: _Workers | msgspec.UnsetType | None = msgspec.UNSET
    max: _Workers | msgspec.UnsetType | None = msgspec.UNSET
    target_s: Annotated[float, Meta(gt=0)] | msgspec.UnsetType | None = msgspec.UNSET
    paused: bool | msgspec.UnsetType = msgspec.UNSET
    reset: bool = False


@router.get("/v1/pools")
@router.get("/v1/scale")
async def list_pools(http_request: Request) -> Response:
    """Every pool the autoscaler told of."""
    views = await read_pools(gateway_of(http_request))
    return _validated(http_request, {"object": "list", "data": [pool_document(view) for view in views]})


@router.get("/v1/scale/{model:path}")
async def scale_value(http_request: Request, model: str) -> Response:
    """`value`: a model's requests that wait or run. KEDA's metrics-api scaler reads it; one that waits wakes from zero."""
    gateway = gateway_of(http_request)
    pools = await gateway.scale.statuses()
    if not any(status.model == model for status in pools.values()):
        await gateway.cards.get(model)  # a pool's model is known before any worker of it ever ran
    return as_json(scale_document(await gateway.queue.stats(model)), headers={"cache-control": "no-store"})


@router.get("/v1/pools/{pool}")
async def get(http_request: Request, pool: str) -> Response:
    """One."""
    return _validated(http_request, pool_document(await read_pool(gateway_of(http_request), pool)))


@router.get("/v1/pools/{pool}/explain")
async def explain(http_request: Request, pool: str) -> Response:
    """Why there are as many workers as there are, and what stands in the way of more."""
    gateway = gateway_of(http_request)
    view = await read_pool(gateway, pool)
    changes = await last_changes(gateway, [pool])
    return as_json(explained_pool(view, changes.get(pool)), headers={"cache-control": "no-store"})


@router.get("/v1/pools/{pool}/history")
async def history(http_request: Request, pool: str) -> Response:
    """Decisions, newest first: `?limit=&before=`."""
    gateway = gateway_of(http_request)
    await read_pool(gateway, pool)
    return await _history(gateway, http_request, pool)


@router.get("/v1/decisions")
async def decisions(http_request: Request) -> Response:
    """Those of all pools, newest first: `?limit=&before=`."""
    return await _history(gateway_of(http_request), http_request, None)


@router.patch("/v1/pools/{pool}")
async def patch(http_request: Request, pool: str) -> Response:
    """Set bounds, target and pause; the autoscaler goes by them from its next tick on."""
    gateway = gateway_of(http_request)
    raw = await read_body(http_request.receive, http_request.headers, gateway.settings.gateway.max_body_bytes)
    body = parse_object(raw)
    fields = parse(body, PoolFields)
    if not body:
        hint = "Send some of min, max, target_s, paused and reset."
        raise PenstockError("invalid_request", "body: there is nothing to set.", hint=hint, param="body")
    view = await read_pool(gateway, pool)
    await gateway.scale.change_override(pool, lambda standing: _changed(standing, fields, view.status))
    return as_json(pool_document(await read_pool(gateway, pool)), headers={"cache-control": "no-store"})


def _changed(standing: PoolOverride, fields: PoolFields, status: PoolStatus) -> PoolOverride:
    """What stands after a change. Raises PenstockError naming the field that cannot be."""
    base = PoolOverride(paused=standing.paused) if fields.reset else standing
    given: dict[str, Any] = {
        name: value for name in ("min", "max", "target_s", "paused") if (value := getattr(fields, name)) is not msgspec.UNSET
    }
    new = replace(base, **given)
    low, high = _bounds(new, standing, status)
    if low is not None and high is not None and low > high:
        param = "min" if given.get("min") is not None else "max"
        raise PenstockError(
            "invalid_request",
            f"{param}: the least number of workers would be {low}, and the most {high}.",
            hint="Set min to at most max; both can be set at once.",
            param=param,
        )
    return new


def _bounds(new: PoolOverride, standing: PoolOverride, status: PoolStatus) -> tuple[int | None, int | None]:
    """The bounds as they will be; None where an override hides what the settings say."""
    low = status.decided.bounds[0] if standing.min is None else None
    high = status.decided.bounds[1] if standing.max is None else None
    return (low if new.min is None else new.min), (high if new.max is None else new.max)


async def _history(gateway: Gateway, http_request: Request, pool: str | None) -> Response:
    query = http_request.query_params
    limit, before = number(query.get("limit"), "limit", PAGE, 1, LARGEST_PAGE), query.get("before") or ""
    if before and not _ENTRY.fullmatch(before):
        hint = "Send the `next_before` of the page before, or a decision's `id`."
        raise PenstockError("invalid_request", "before: not one of ours.", hint=hint, param="before")
    found: list[dict[str, Any]] = []
    scanned, last, more = 0, "", False
    async for entry, record in gateway.scale.decisions(before=before):
        if len(found) == limit or scanned == _SCANNED:
            more = True
            break
        scanned, last = scanned + 1, entry
        if pool in (None, record.pool):
            found.append(decision_document(record, entry))
    return as_json(
        {"object": "list", "data": found, "next_before": last if more else None}, headers={"cache-control": "no-store"}
    )


def _validated(http_request: Request, document: dict[str, Any]) -> Response:
    etag = etag_of(document)
    headers = {"etag": etag, "cache-control": "no-cache"}
    seen = [tag.strip().removeprefix("W/") for tag in http_request.headers.get("if-none-match", "").split(",")]
    if etag in seen or "*" in seen:
        return Response(status_code=304, headers=headers)
    return as_json(document, headers=headers)
