"""The OpenAI API: models, chat completions, completions; streamed and whole, for the official clients as they are.

A stream opens before a worker took the request, so what fails later arrives as an error frame under 200.
Never here: the native API's words, admission.
"""

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from dispatch.errors import PenstockError
from dispatch.messages import Enqueued, EnqueueStatus, EntryKind, InputKind, LogEntry
from dispatch.reports import Heartbeat, ModelCard
from dispatch.states import OnDisconnect, WorkerState
from gateway.admission import admit, terms_from
from gateway.auth import authenticated
from gateway.bodies import parse_object, read_body
from gateway.context import Gateway, address_of, gateway_of, headers_of, store_present
from gateway.fields import ChatFields, CompletionFields, Sampled, parse
from gateway.problems import CLIENT_LEFT, ended_badly, error_member, problem
from gateway.reading import Over, Reader, expired
from gateway.shapes import as_json, with_total
from gateway.sse import count_over, streamed
from gateway.submitting import Outcome, read_end, read_log, read_to_end, submit_read
from gateway.webhooks import refuse_webhook

router = APIRouter(prefix="/v1", dependencies=[Depends(authenticated), Depends(store_present)])

_DONE = b"data: [DONE]\n\n"
_AFTER_DEADLINE_S = 15.0  # the sweeper's time to say that the deadline passed


@router.get("/models")
async def list_models(http_request: Request) -> Response:
    """Every model with a card, whether or not a worker runs."""
    gateway = gateway_of(http_request)
    cards, beats = await gateway.fleet.cards(), await gateway.fleet.workers()
    return as_json({"object": "list", "data": [_model(card, beats) for card in cards]})


@router.get("/models/{model:path}")
async def get_model(http_request: Request, model: str) -> Response:
    """One model."""
    gateway = gateway_of(http_request)
    return as_json(_model(await gateway.cards.get(model), await gateway.fleet.workers()))


async def chat_completions(http_request: Request, tenant: str) -> Response:
    """A chat."""
    return await _answer(http_request, tenant, ChatFields, InputKind.CHAT)


async def completions(http_request: Request, tenant: str) -> Response:
    """A plain prompt."""
    return await _answer(http_request, tenant, CompletionFields, InputKind.COMPLETION)


async def _answer(http_request: Request, tenant: str, shape: type[Sampled], kind: InputKind) -> Response:
    gateway = gateway_of(http_request)
    gateway.refuse_if_draining()
    asked_headers = headers_of(http_request)
    raw = await read_body(http_request.receive, asked_headers, gateway.settings.gateway.max_body_bytes)
    body = parse_object(raw)
    refuse_webhook(body)
    fields = parse(body, shape)
    if fields.stream_options is not None and not fields.stream:
        raise PenstockError(
            "invalid_request", "stream_options: only with stream.", hint="Set stream to true.", param="stream_options"
        )
    terms = terms_from(
        asked_headers,
        raw,
        gateway.settings.queue,
        tenant,
        fields,
        OnDisconnect.CANCEL,
        address=address_of(http_request),
        reader=gateway.feed.gateway,
    )
    admitted = await admit(gateway, fields, body, terms)
    timer = _Timer(gateway, admitted.card.name)
    done, reader = await submit_read(gateway, admitted.new)
    headers = {"x-penstock-request": done.id, "x-penstock-queue-position": str(done.position)}
    if done.status is EnqueueStatus.REPLAY:
        headers["idempotency-replayed"] = "true"
    if fields.stream:
        include_usage = bool(fields.stream_options and fields.stream_options.include_usage)
        return streamed(gateway, reader, OpenAIFrames(kind, done, admitted.card.name, include_usage, timer), headers)
    try:
        timeout_s = terms.deadline_ms / 1000 + _AFTER_DEADLINE_S
        entries = await read_to_end(http_request.scope, reader, timeout_s)
        return _whole(kind, done, admitted.card.name, reader, read_log(entries), headers, timer)
    finally:
        count_over(gateway, reader, reader.over)
        gateway.feed.leave(reader)


def _whole(
    kind: InputKind, done: Enqueued, model: str, reader: Reader, outcome: Outcome, headers: dict[str, str], timer: "_Timer"
) -> Response:
    # The request is in the queue: a client that sends it again would only have it done twice.
    once = {**headers, "x-should-retry": "false"}
    if reader.over is Over.LEFT:
        return Response(status_code=CLIENT_LEFT)
    if outcome.end is None:
        if reader.over is Over.CLOSING:
            why = PenstockError(
                "draining",
                "This gateway is shutting down; the request goes on.",
                hint=f"Ask any gateway: GET /v1/requests/{done.id}/result",
            )
        elif reader.over is Over.CUT:
            why = PenstockError("internal_error", "The answer came faster than it was read.", hint="Ask with stream set to true.")
        elif reader.ended:
            why = expired(done.id)
        else:
            why = PenstockError("deadline_exceeded", "The deadline passed before the request was completed.")
        return problem(why, headers=once)
    timer.ended()
    if outcome.end.state != "completed":
        return problem(ended_badly(outcome.end.state, outcome.end.error), headers=once)
    chat = kind is InputKind.CHAT
    finish_reason = outcome.end.finish_reason or "stop"
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
    if chat:
        choice["message"] = {"role": "assistant", "content": outcome.text, "refusal": None}
    else:
        choice["text"] = outcome.text
    body = {
        "id": _public_id(kind, done.id),
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": with_total(outcome.end.usage, outcome.end.attempts),
    }
    return as_json(body, headers=headers)


class _ChunkText(msgspec.Struct):
    text: msgspec.Raw = msgspec.Raw(b'""')


_texts = msgspec.json.Decoder(_ChunkText)


class OpenAIFrames:
    """The OpenAI API's chunks. An entry's text stays the JSON it is: nothing is decoded and encoded on the way."""

    def __init__(self, kind: InputKind, done: Enqueued, model: str, include_usage: bool, timer: "_Timer") -> None:
        chat = kind is InputKind.CHAT
        shared = {
            "id": _public_id(kind, done.id),
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._head = b"data: " + msgspec.json.encode(shared)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._chat = chat
        self._position = done.position
        self._include_usage = include_usage
        self._begun = False
        self._timer = timer

    def opening(self) -> bytes:
        """A comment: clients ignore it, proxies flush it, people read it."""
        return b": queued position=%d\n\n" % self._position if self._position else b": penstock\n\n"

    def entry(self, entry: LogEntry) -> bytes:
        """A chunk, or the frames that end the stream."""
        if entry.kind is EntryKind.END:
            return self._end(entry)
        if entry.kind is not EntryKind.CHUNK:  # of a later attempt these clients know nothing: the text just goes on
            return b""
        self._timer.chunk()
        text = bytes(_texts.decode(entry.data).text)
        body = b'"delta":{"content":%s}' % text if self._chat else b'"text":%s' % text
        event_id = b"id: %d-%s\n" % (entry.seq, entry.chain.encode())
        return self._first() + event_id + self._frame(body, b"null")

    def rewind(self) -> bytes:
        """There is no word for it: better an error than a spliced answer."""
        raise PenstockError("stream_rewound", "Redis went back in time and lost a part of this answer.", hint="Ask again.")

    def failure(self, error: PenstockError) -> bytes:
        """An error frame, as the clients know it."""
        return b"data: " + msgspec.json.encode({"error": error_member(error)}) + b"\n\n"

    def _end(self, entry: LogEntry) -> bytes:
        end = read_end(entry)
        self._timer.ended()
        if end.state != "completed":
            return self.failure(ended_badly(end.state, end.error))
        reason = msgspec.json.encode(end.finish_reason or "stop")
        frames = self._first() + self._frame(b'"delta":{}' if self._chat else b'"text":""', reason)
        if self._include_usage:
            usage = msgspec.json.encode(with_total(end.usage, end.attempts))
            frames += self._head + b'],"usage":' + usage + b"}\n\n"
        return frames + _DONE

    def _first(self) -> bytes:
        if self._begun or not self._chat:
            return b""
        self._begun = True
        return self._frame(b'"delta":{"role":"assistant","content":""}', b"null")

    def _frame(self, body: bytes, finish_reason: bytes) -> bytes:
        return self._head + b'{"index":0,' + body + b',"logprobs":null,"finish_reason":' + finish_reason + b"}" + self._tail


class _Timer:
    """Times a request as this gateway sees it."""

    def __init__(self, gateway: Gateway, model: str) -> None:
        self._metrics = gateway.metrics
        self._model = model
        self._started = time.monotonic()
        self._seen_chunk = False

    def chunk(self) -> None:
        """A chunk came."""
        if not self._seen_chunk:
            self._seen_chunk = True
            self._metrics.first_token.labels(self._model).observe(time.monotonic() - self._started)

    def ended(self) -> None:
        """The end came."""
        self._metrics.duration.labels(self._model).observe(time.monotonic() - self._started)


def _public_id(kind: InputKind, request: str) -> str:
    return f"{'chatcmpl' if kind is InputKind.CHAT else 'cmpl'}-{request}"


_BEST_FIRST = (WorkerState.READY, WorkerState.LOADING, WorkerState.STARTING, WorkerState.DRAINING)


def _model(card: ModelCard, beats: Sequence[Heartbeat]) -> dict[str, Any]:
    states = [beat.state for beat in beats if beat.model == card.name]
    return {
        "id": card.name,
        "object": "model",
        "created": card.created_at_s,
        "owned_by": "penstock",
        "penstock": {
            "state": next((state for state in _BEST_FIRST if state in states), WorkerState.GONE),
            "workers": len(states),
            "engine": card.engine,
            "context_tokens": card.context_tokens,
            "kinds": card.kinds,
        },
    }
