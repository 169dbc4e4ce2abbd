"""From an admitted request to its outcome: into the line, and waiting for the end. Shared by the APIs.

Never here: what a client sends or sees (routes), frames (sse.py).
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import Scope

from dispatch.errors import PenstockError
from dispatch.faults import STORE_FAULT, NotReplicated, is_unreachable
from dispatch.keys import shard_of
from dispatch.messages import Enqueued, EnqueueStatus, EntryKind, InferenceRequest, LogEntry, NewRequest, decode, encode
from dispatch.queue import Queue
from dispatch.records import RequestRecord, Tombstone
from dispatch.states import ENDINGS
from gateway.context import Gateway
from gateway.leaving import EXTENSION, Leaving
from gateway.reading import NotYet, Reader, expired, not_found, unconfirmed

_TRIES = 3
_RETRY_S = 0.1
_FULL_RETRY_S = 5
_NOTHING_STORED = frozenset({"queue_full", "idempotency_mismatch"})


class End(msgspec.Struct, kw_only=True):
    """The data of a log's last entry."""

    state: str
    attempts: int = 0
    worker: str = ""
    created_at_ms: int = 0
    begun_at_ms: int = 0
    first_output_at_ms: int = 0
    ended_at_ms: int = 0
    """0: an older release wrote it, which told no moments."""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class _ChunkData(msgspec.Struct):
    text: str | None = None
    output: Any = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole log, read. `end` None: it goes on."""

    text: str
    outputs: list[Any]
    end: End | None


_chunks = msgspec.json.Decoder(_ChunkData)
_ends = msgspec.json.Decoder(End)


def read_end(entry: LogEntry) -> End:
    """The end's data."""
    return end_from(entry.data)


def end_from(data: bytes) -> End:
    """An end's data, read."""
    return _ends.decode(data)


def read_log(entries: Iterable[LogEntry]) -> Outcome:
    """The text or outputs of a log, and its end."""
    texts, outputs, end = [], [], None
    for entry in entries:
        if entry.kind is EntryKind.END:
            end = read_end(entry)
        if entry.kind is not EntryKind.CHUNK:
            continue
        chunk = _chunks.decode(entry.data)
        if chunk.text:
            texts.append(chunk.text)
        if chunk.output is not msgspec.UNSET and chunk.output is not None:
            outputs.append(chunk.output)
    return Outcome("".join(texts), outputs, end)


async def submit(gateway: Gateway, new: NewRequest) -> Enqueued:
    """Into the line. Repeats after a lost reply (the same id changes nothing). Raises queue_full or idempotency_mismatch."""
    for tries_left in reversed(range(_TRIES)):
        try:
            done = await gateway.queue.enqueue(new)
            break
        except STORE_FAULT as error:
            if not is_unreachable(error):
                raise
            if not tries_left or gateway.watch.away:
                raise maybe_accepted("Redis did not answer in time") from error
            await asyncio.sleep(_RETRY_S)
    if done.status is EnqueueStatus.FULL:
        limit = gateway.queue.rules.max_backlog
        raise PenstockError(
            "queue_full",
            f"{done.backlog} requests wait for {new.model!r}; no more than {limit} may.",
            hint="Try again after Retry-After seconds, or start more workers.",
            param="model",
            retry_after_s=_FULL_RETRY_S,
            extra={"backlog": done.backlog, "max_backlog": limit},
        )
    if done.status is EnqueueStatus.MISMATCH:
        raise PenstockError(
            "idempotency_mismatch",
            "This Idempotency-Key came before with another body.",
            hint="Use a new key for a new request.",
            param="idempotency-key",
        )
    if done.status is EnqueueStatus.OK:
        gateway.promises.remember(new)
    elif done.state not in ENDINGS and done.id not in gateway.promises:
        gateway.promises.remember(_under(done.id, new))  # its first gateway may be gone: this one answers for it, too
    return done


def _under(request: str, new: NewRequest) -> NewRequest:
    kept = decode(new.input, InferenceRequest, "the input of a replayed request")
    return msgspec.structs.replace(new, id=request, input=encode(msgspec.structs.replace(kept, id=request)))


def maybe_accepted(why: str) -> PenstockError:
    """The error for a submit of which nobody knows whether it happened."""
    return PenstockError(
        "redis_unavailable",
        f"{why}: the request may have been accepted, or not.",
        hint="Send it again with the same Idempotency-Key, then it is done once; without one it may be done twice.",
        retry_after_s=2,
    )


async def kept_input(gateway: Gateway, request: str) -> InferenceRequest:
    """What was asked. Raises PenstockError("expired") when it is no longer kept."""
    kept = await gateway.queue.input(request)
    if kept is None:
        raise PenstockError(
            "expired", f"The input of {request} is no longer kept (a completed request's goes at once).", hint="Send it anew."
        )
    return kept


def renewed(record: RequestRecord, kept: InferenceRequest, tenant: str, new_id: str) -> NewRequest:
    """A new request that asks for what an ended one asked for."""
    return NewRequest(
        id=new_id,
        model=record.model,
        input=encode(msgspec.structs.replace(kept, id=new_id)),
        kind=record.kind,
        cost_tokens=record.cost_tokens,
        deadline_ms=record.deadline_at_ms - record.created_at_ms,
        priority=record.priority,
        tenant=tenant,
        max_attempts=record.max_attempts,
        retry_of=record.id,
        prompt_tokens=record.prompt_tokens,
        strategy=record.strategy,
        session=record.session,
        webhook=record.webhook,
        webhook_events=record.webhook_events,
    )


async def submit_read(gateway: Gateway, new: NewRequest) -> tuple[Enqueued, Reader]:
    """Into the line with a reader that misses nothing: known here before, registered in Redis by the enqueue itself."""
    reader = gateway.feed.subscribe(new.id, attached=True)
    try:
        done = await submit(gateway, new)
    except BaseException as error:
        if isinstance(error, PenstockError) and error.code in _NOTHING_STORED:
            gateway.feed.forget(reader)
        else:  # nobody knows: with this gateway as its reader it would be worked for nobody
            gateway.feed.leave(reader)
        raise
    if done.status is not EnqueueStatus.REPLAY:
        return done, reader
    gateway.feed.forget(reader)
    reader = gateway.feed.subscribe(done.id)
    try:
        await reader.attach()
    except BaseException:
        gateway.feed.leave(reader)
        raise
    return done, reader


async def read_to_end(scope: Scope, reader: Reader, timeout_s: float) -> list[LogEntry]:
    """The log until its end, the client's leaving or the timeout: see the last entry, `reader.over` and `reader.ended`.

    Where `reader.ended` and no end is among them, the log is over and its rest is not kept.
    """
    deadline = time.monotonic() + timeout_s
    entries: list[LogEntry] = []
    leaving: Leaving = scope["extensions"][EXTENSION]
    leaving.ask(reader.leave)
    try:
        while reader.over is None:
            left = deadline - time.monotonic()
            for item in await reader.next(max(left, 0.0)):
                if item is None:
                    entries.clear()
                else:
                    entries.append(item)
            if (entries and entries[-1].kind is EntryKind.END) or reader.ended or left <= 0:
                break
    finally:
        leaving.forget(reader.leave)
    return entries


async def owned_record(gateway: Gateway, request: str, tenant: str) -> RequestRecord:
    """A request's record. Another tenant's is as unknown as one that never was.

    Where replicas are waited for, an end or an absence is told only when they say the same: else a failover might take it back.
    """
    if shard_of(request) is None:
        raise not_found(request)
    try:
        record, stone = await _found(gateway.queue, request)
    except NotReplicated as error:
        raise unconfirmed(request) from error
    if record is None:
        if stone is not None and stone.tenant == tenant:
            raise expired(request)
        if await gateway.promises.unsettled():
            raise NotYet(request)
        raise not_found(request)
    if record.tenant != tenant:
        raise not_found(request)
    return record


async def _found(queue: Queue, request: str) -> tuple[RequestRecord | None, Tombstone | None]:
    record = await queue.record(request)
    if queue.replicated and (record is None or record.state in ENDINGS):
        record = await queue.record(request, sure=True)
    return record, None if record is not None else await queue.tombstone(request, sure=True)
