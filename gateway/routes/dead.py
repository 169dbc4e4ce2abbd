"""The native API of dead letters: list, look, retry, purge. A prompt is shown only to who asks for it by `?input=1`.

A letter belongs to the tenant of its request; another's is as unknown as one that never was. Never here: what makes one.
"""

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from dispatch.dead_letters import DeadLetter
from dispatch.errors import PenstockError
from dispatch.keys import shard_of
from dispatch.records import RequestRecord
from gateway.auth import Tenant, authenticated
from gateway.context import Gateway, gateway_of, store_present
from gateway.queries import LARGEST_PAGE, PAGE, number
from gateway.reading import not_found
from gateway.routes.requests import accepted
from gateway.shapes import as_json, dead_document, request_document
from gateway.submitting import kept_input, renewed, submit

router = APIRouter(prefix="/v1/dead", dependencies=[Depends(authenticated), Depends(store_present)])

_SCANNED = 5_000
_CURSOR = re.compile(r"[0-9]{1,15}-[0-9]{1,10}")


@router.get("")
async def list_dead(http_request: Request, tenant: Tenant) -> Response:
    """Dead letters, newest first: `?model=&limit=&cursor=`."""
    gateway = gateway_of(http_request)
    query = http_request.query_params
    limit, cursor = number(query.get("limit"), "limit", PAGE, 1, LARGEST_PAGE), _cursor(query.get("cursor"))
    found: list[DeadLetter] = []
    scanned, last, more = 0, "", False
    letters: AsyncIterator[DeadLetter] = gateway.queue.dead_letters(before=cursor)
    async with aclosing(letters) as all_letters:  # type: ignore[type-var]
        async for letter in all_letters:
            if len(found) == limit or scanned == _SCANNED:
                more = True
                break
            scanned, last = scanned + 1, letter.entry
            wanted = query.get("model") in (None, letter.model)
            if wanted and await _record_of(gateway, letter, tenant) is not None:
                found.append(letter)
    return as_json({"object": "list", "data": [dead_document(d) for d in found], "next_cursor": last if more else None})


@router.post("/purge")
async def purge(http_request: Request, tenant: Tenant) -> Response:
    """Forget all of them, or those of `?model=`. Their requests then go like any other that ended."""
    gateway = gateway_of(http_request)
    model = http_request.query_params.get("model")
    removed = 0
    async for letter in gateway.queue.dead_letters():
        if model in (None, letter.model) and await _record_of(gateway, letter, tenant) is not None:
            removed += await gateway.queue.forget_dead(letter)
    return as_json({"object": "dead_letters", "model": model, "removed": removed})


@router.get("/{request_id}")
async def get(http_request: Request, request_id: str, tenant: Tenant) -> Response:
    """One, with its request; `?input=1`: with what was asked."""
    gateway = gateway_of(http_request)
    letter, record = await _owned(gateway, request_id, tenant)
    kept = await gateway.queue.input(request_id)
    document = {**dead_document(letter), "request": request_document(record, None), "input_kept": kept is not None}
    if http_request.query_params.get("input") in ("1", "true"):
        document["input"] = None if kept is None else msgspec.to_builtins(kept)
    return as_json(document, headers={"cache-control": "no-store"})


@router.post("/{request_id}/retry")
async def retry(http_request: Request, request_id: str, tenant: Tenant) -> Response:
    """A new request from the kept input; the letter is taken off. Asked twice, it is still one new request."""
    gateway = gateway_of(http_request)
    gateway.refuse_if_draining()
    letter, record = await _owned(gateway, request_id, tenant)
    kept = await kept_input(gateway, request_id)
    new = renewed(record, kept, tenant, _next_id(letter))
    done = await submit(gateway, new)
    await gateway.queue.forget_dead(letter)
    return accepted(new, done)


@router.delete("/{request_id}")
async def delete(http_request: Request, request_id: str, tenant: Tenant) -> Response:
    """Forget one."""
    gateway = gateway_of(http_request)
    letter, _ = await _owned(gateway, request_id, tenant)
    await gateway.queue.forget_dead(letter)
    return as_json(dead_document(letter))


async def _owned(gateway: Gateway, request_id: str, tenant: str) -> tuple[DeadLetter, RequestRecord]:
    if shard_of(request_id) is None:
        raise not_found(request_id)
    async for letter in gateway.queue.dead_letters():
        if letter.request == request_id:
            record = await _record_of(gateway, letter, tenant)
            if record is not None:
                return letter, record
    raise PenstockError(
        "request_not_found",
        f"There is no dead letter of {request_id[:60]!r}.",
        hint="GET /v1/dead lists them; one that was retried or purged is no longer there.",
    )


async def _record_of(gateway: Gateway, letter: DeadLetter, tenant: str) -> RequestRecord | None:
    """Its request, if that is this tenant's. Without its record nobody can tell whose it was."""
    record = await gateway.queue.record(letter.request)
    return record if record is not None and record.tenant == tenant else None


def _next_id(letter: DeadLetter) -> str:
    """The id of its retry: the same however often it is asked, so a lost answer or a double click makes no second one."""
    shard = shard_of(letter.request)
    return f"{shard}.{hashlib.sha256(f'retry {letter.entry} {letter.request}'.encode()).hexdigest()[:32]}"


def _cursor(text: str | None) -> str:
    if text and not _CURSOR.fullmatch(text):
        hint = "Send the `next_cursor` of the page before."
        raise PenstockError("invalid_request", "cursor: not one of ours.", hint=hint, param="cursor")
    return text or ""
