"""The native API of one request: submit, look, stream, result, cancel, retry, list.

Never here: other APIs' words.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT, is_unreachable
from dispatch.messages import Enqueued, EnqueueStatus, EntryKind, LogEntry, NewRequest, first_chain, new_id
from dispatch.records import Ending, RequestRecord
from dispatch.states import OnDisconnect, RequestState, shown
from gateway.admission import admit, terms_from
from gateway.auth import Tenant, authenticated
from gateway.bodies import parse_object, read_body
from gateway.context import Gateway, address_of, gateway_of, headers_of, store_present
from gateway.fields import NativeFields, parse
from gateway.native_events import NativeFrames, resume_from
from gateway.queries import LARGEST_PAGE, MAX_WAIT_S, PAGE, moment_ms, number, preferred_wait_s, row_of
from gateway.reading import Over, expired, not_found
from gateway.shapes import accepted_document, as_json, etag_of, is_ended, request_document, result_document, story_headers
from gateway.sse import count_over, streamed
from gateway.submitting import kept_input, owned_record, read_end, read_log, read_to_end, renewed, submit, submit_read
from gateway.webhooks import asked_webhook

router = APIRouter(prefix="/v1/requests", dependencies=[Depends(authenticated), Depends(store_present)])

_SCANNED = 5_000


async def post(http_request: Request, tenant: str) -> Response:
    """Queue a request. 202 at once; with `Prefer: wait=N` 200 and the result, if it is ready in time."""
    gateway = gateway_of(http_request)
    gateway.refuse_if_draining()
    headers = headers_of(http_request)
    raw = await read_body(http_request.receive, headers, gateway.settings.gateway.max_body_bytes)
    body = parse_object(raw)
    fields = parse(body, NativeFields)
    if fields.stream:
        raise PenstockError(
            "unsupported", "stream: this route queues.", hint="Read the stream from `links.events`.", param="stream"
        )
    wait_s = preferred_wait_s(headers.get("prefer", ""))
    # A client that waits here has no id yet: when it leaves, nobody can ever read the answer. When it was told the id, it
    # goes on without a reader, unless the client named another wish.
    default = OnDisconnect.CANCEL if wait_s else OnDisconnect.CONTINUE
    terms = terms_from(
        headers,
        raw,
        gateway.settings.queue,
        tenant,
        fields,
        default,
        address=address_of(http_request),
        reader=gateway.feed.gateway if wait_s else "",
        webhook=asked_webhook(fields, gateway.settings.webhook),
    )
    admitted = await admit(gateway, fields, body, terms)
    if not wait_s:
        return accepted(admitted.new, await submit(gateway, admitted.new))
    done, reader = await submit_read(gateway, admitted.new)
    then_continue = False
    try:
        entries = await read_to_end(http_request.scope, reader, wait_s)
        then_continue = terms.on_disconnect_is_default and reader.over is not Over.LEFT
        if reader.ended and not _has_ended(entries):
            raise expired(done.id)
        applied = {"preference-applied": f"wait={wait_s}", **_replayed(done)}
        if _has_ended(entries):
            record = _told_by_its_end(gateway, admitted.new, done, entries) or await _record_of_an_end(gateway, done.id, tenant)
            if record is not None:
                return _result(record, entries, applied)
        return accepted(admitted.new, done, applied)
    finally:
        count_over(gateway, reader, reader.over)
        gateway.feed.leave(reader, then_continue=then_continue)


@router.get("")
async def list_requests(http_request: Request, tenant: Tenant) -> Response:
    """Requests, newest first: `?status=&model=&queue=&worker=&since=&limit=&cursor=`."""
    gateway = gateway_of(http_request)
    query = http_request.query_params
    status, model, worker = query.get("status"), query.get("model") or query.get("queue"), query.get("worker")
    if status is not None and status not in {shown(s)[0] for s in RequestState}:
        words = ", ".join(dict.fromkeys(shown(s)[0].value for s in RequestState))
        raise PenstockError(
            "invalid_request", f"status: {status[:40]!r} is none of {words}.", hint=f"Use one of {words}.", param="status"
        )
    limit = number(query.get("limit"), "limit", PAGE, 1, LARGEST_PAGE)
    since_ms = moment_ms(query.get("since"))
    before = row_of(query.get("cursor"))
    found: list[RequestRecord] = []
    scanned, last, more = 0, None, False
    pages: AsyncIterator[RequestRecord] = gateway.queue.list_requests(before=before)
    async with aclosing(pages) as records:  # type: ignore[type-var]
        async for record in records:
            if since_ms is not None and record.created_at_ms < since_ms:
                break
            if len(found) == limit or scanned == _SCANNED:
                more = True
                break
            scanned, last = scanned + 1, record
            if (
                record.tenant == tenant
                and (status is None or shown(record.state)[0] == status)
                and (model is None or record.model == model)
                and (worker is None or record.worker == worker)
            ):
                found.append(record)
    cursor = f"{last.created_at_ms}-{last.id}" if more and last is not None else None
    return as_json({"object": "list", "data": [request_document(r, None) for r in found], "next_cursor": cursor})


@router.get("/{request_id}")
async def get(http_request: Request, request_id: str, tenant: Tenant) -> Response:
    """One request. `?wait=N`: answers when it has ended, or after N seconds. With If-None-Match: 304 if nothing changed."""
    gateway = gateway_of(http_request)
    record = await _awaited(gateway, http_request, request_id, tenant)
    document = request_document(record, await gateway.queue.position(record), await gateway.queue.webhook(record))
    etag = etag_of(document)
    headers = {"etag": etag, "cache-control": "no-cache", **story_headers(record)}
    if not is_ended(record.state):
        headers["retry-after"] = "1"
    seen = [tag.strip().removeprefix("W/") for tag in http_request.headers.get("if-none-match", "").split(",")]
    if etag in seen or "*" in seen:
        return Response(status_code=304, headers=headers)
    return as_json(document, headers=headers)


@router.get("/{request_id}/result")
async def result(http_request: Request, request_id: str, tenant: Tenant) -> Response:
    """The whole result; 202 with the request while it is unfinished; 410 when it is no longer kept."""
    gateway = gateway_of(http_request)
    record = await _awaited(gateway, http_request, request_id, tenant)
    if not is_ended(record.state):
        return as_json(request_document(record, await gateway.queue.position(record)), 202, {"retry-after": "1"})
    entries = await gateway.queue.output(request_id)
    if not entries:
        raise expired(request_id)
    return _result(record, entries, {})


@router.get("/{request_id}/events")
async def events(http_request: Request, request_id: str, tenant: Tenant) -> Response:
    """The log as Server-Sent Events, from the start or after an event id, from any gateway."""
    gateway = gateway_of(http_request)
    record = await owned_record(gateway, request_id, tenant)
    after = http_request.query_params.get("after") or http_request.headers.get("last-event-id")
    seq, chain = resume_from(after, request_id)
    reader = gateway.feed.subscribe(request_id, after_seq=seq, after_chain=chain)
    try:
        await reader.attach()
        if reader.ended and not reader.waiting:
            # The client has the end already; 204 tells an EventSource to stop reconnecting.
            gateway.feed.leave(reader)
            return Response(status_code=204)
        document = request_document(record, await gateway.queue.position(record))
    except BaseException:
        gateway.feed.leave(reader)
        raise
    opening_id = f"{seq}-{chain}" if seq else f"0-{first_chain(request_id)}"
    return streamed(gateway, reader, NativeFrames(document, opening_id), {"x-penstock-request": request_id})


@router.delete("/{request_id}")
async def delete(http_request: Request, request_id: str, tenant: Tenant) -> Response:
    """Cancel, at once and for good. What has ended stays as it ended."""
    gateway = gateway_of(http_request)
    await owned_record(gateway, request_id, tenant)
    if await gateway.queue.cancel(request_id) is None:
        raise not_found(request_id)
    gateway.promises.forget(request_id)
    return as_json(request_document(await owned_record(gateway, request_id, tenant), None))


@router.post("/{request_id}/cancel")
async def cancel(http_request: Request, request_id: str, tenant: Tenant) -> Response:
    """The same as DELETE, for clients that cannot."""
    return await delete(http_request, request_id, tenant)


@router.post("/{request_id}/retry")
async def retry(http_request: Request, request_id: str, tenant: Tenant) -> Response:
    """A new request from the kept input of one that did not complete."""
    gateway = gateway_of(http_request)
    gateway.refuse_if_draining()
    record = await owned_record(gateway, request_id, tenant)
    if not is_ended(record.state):
        raise PenstockError(
            "conflict", f"Request {request_id} is {shown(record.state)[0]}: it may still complete.", hint="Cancel it first."
        )
    kept = await kept_input(gateway, request_id)
    new = renewed(record, kept, tenant, new_id(gateway.queue.shard))
    return accepted(new, await submit(gateway, new))


def _has_ended(entries: list[LogEntry]) -> bool:
    return bool(entries) and entries[-1].kind is EntryKind.END


def _told_by_its_end(gateway: Gateway, new: NewRequest, done: Enqueued, entries: list[LogEntry]) -> Ending | None:
    """What the end's entry says of it, which its own submitter knows the rest of."""
    end = read_end(entries[-1])
    # Where replicas are waited for, nothing less than a record they agree on.
    if not end.ended_at_ms or gateway.queue.replicated or done.status is EnqueueStatus.REPLAY:
        return None
    return Ending(
        done.id, new.model, new.kind, RequestState(end.state), end.attempts, end.worker, new.retry_of, end.created_at_ms,
        end.begun_at_ms, end.first_output_at_ms, end.ended_at_ms,
    )  # fmt: skip


async def _record_of_an_end(gateway: Gateway, request_id: str, tenant: str) -> RequestRecord | Ending | None:
    """None: Redis has gone since. The request was accepted, so its client is told where to look, not that it failed."""
    try:
        # Where replicas are waited for, nothing less than a record they agree on.
        ending = None if gateway.queue.replicated else await gateway.queue.ending(request_id)
        return ending or await owned_record(gateway, request_id, tenant)
    except STORE_FAULT as error:
        if not is_unreachable(error):
            raise
    except PenstockError as error:
        if error.code != "redis_unavailable":
            raise
    return None


async def _awaited(gateway: Gateway, http_request: Request, request_id: str, tenant: str) -> RequestRecord:
    """The record: at once, or with `?wait=N` when it has ended or after N seconds."""
    record = await owned_record(gateway, request_id, tenant)
    wait_s = number(http_request.query_params.get("wait"), "wait", 0, 0, MAX_WAIT_S)
    if not wait_s or is_ended(record.state):
        return record
    reader = gateway.feed.subscribe(record.id, after_seq=record.seq, after_chain=record.chain if record.seq else "")
    try:
        await read_to_end(http_request.scope, reader, wait_s)
    finally:
        gateway.feed.leave(reader)
    return await owned_record(gateway, request_id, tenant)


def _result(record: RequestRecord | Ending, entries: list[LogEntry], headers: dict[str, str]) -> Response:
    return as_json(result_document(record, read_log(entries)), headers={**story_headers(record), **headers})


def accepted(new: NewRequest, done: Enqueued, headers: dict[str, str] | None = None) -> Response:
    """The answer to a submit."""
    sent = {
        "location": f"/v1/requests/{done.id}",
        "retry-after": "1",
        "x-penstock-request": done.id,
        "x-penstock-queue-position": str(done.position),
        **_replayed(done),
        **(headers or {}),
    }
    return as_json(accepted_document(done.id, new.model, done.state, done.position, new.retry_of), 202, sent)


def _replayed(done: Enqueued) -> dict[str, str]:
    return {"idempotency-replayed": "true"} if done.status is EnqueueStatus.REPLAY else {}
