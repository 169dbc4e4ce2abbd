"""What the native API shows of requests, queues and workers, as JSON objects. Moments are `_at_ms`, Redis's clock. Pure.

Never here: reading any of it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from dispatch.dead_letters import DeadLetter
from dispatch.records import Attempt, Ending, QueueStats, RequestRecord
from dispatch.reports import Heartbeat
from dispatch.states import ENDINGS, RequestState, shown
from dispatch.webhooks import Webhook
from gateway.submitting import End, Outcome
from gateway.webhooks import webhook_document


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(value), status, dict(headers or {}), "application/json")


def links(request: str) -> dict[str, str]:
    """Where a request's other pages are."""
    base = f"/v1/requests/{quote(request)}"
    return {
        "self": base,
        "events": f"{base}/events",
        "result": f"{base}/result",
        "cancel": f"{base}/cancel",
        "retry": f"{base}/retry",
        "explain": f"{base}/explain",
    }


def request_document(record: RequestRecord, position: int | None, webhook: Webhook | None = None) -> dict[str, Any]:
    """A request as GET /v1/requests/{id} shows it. `position`: its place in line, null where it is not known (further back
    than is looked) or it does not wait. `webhook`: what became of telling it."""
    status, phase = shown(record.state)
    if record.state is RequestState.RUNNING:
        phase = "decode" if record.first_output_at_ms else "prefill"
    return {
        "id": record.id,
        "object": "request",
        "status": status,
        "phase": phase,
        "model": record.model,
        "queue": record.model,
        "kind": record.kind,
        "priority": record.priority,
        "position": position,
        "eta_seconds": None,
        "attempt": record.attempt,
        "charged": record.charged,
        "crashes": record.crashes,
        "max_attempts": record.max_attempts,
        "worker": record.worker or None,
        "cost_tokens": record.cost_tokens,
        "seq": record.seq,
        "on_disconnect": record.on_disconnect,
        "retry_of": record.retry_of or None,
        "webhook": webhook_document(record, webhook),
        "created_at_ms": record.created_at_ms,
        "begun_at_ms": record.begun_at_ms or None,
        "first_output_at_ms": record.first_output_at_ms or None,
        "ended_at_ms": record.ended_at_ms or None,
        "deadline_at_ms": record.deadline_at_ms,
        "story": [_told(attempt) for attempt in record.story],
        "links": links(record.id),
    }


def _told(attempt: Attempt) -> dict[str, Any]:
    """An earlier attempt: who had it from when to when, and why it was over."""
    return {
        "attempt": attempt.attempt,
        "worker": attempt.worker,
        "granted_at_ms": attempt.granted_at,
        "begun_at_ms": attempt.begun_at or None,
        "left_at_ms": attempt.left_at,
        "seq": attempt.seq,
        "why": attempt.why,
    }


def accepted_document(request: str, model: str, state: RequestState, position: int, retry_of: str) -> dict[str, Any]:
    """The answer to a submit."""
    status, phase = shown(state)
    return {
        "id": request,
        "object": "request",
        "status": status,
        "phase": phase,
        "model": model,
        "queue": model,
        "position": position,
        "eta_seconds": None,
        "retry_of": retry_of or None,
        "links": links(request),
    }


def result_document(record: RequestRecord | Ending, outcome: Outcome) -> dict[str, Any]:
    """An ended request's result."""
    end = outcome.end or End(state=record.state)
    return {
        "id": record.id,
        "object": "result",
        "status": end.state,
        "model": record.model,
        **({"outputs": outcome.outputs} if outcome.outputs or record.kind == "opaque" else {}),
        "text": outcome.text,
        "finish_reason": end.finish_reason,
        "usage": with_total(end.usage, end.attempts),
        "error": end.error,
        "attempts": record.attempt,
        "worker": record.worker or None,
        "retry_of": record.retry_of or None,
        "timing": timing(record),
        "links": links(record.id),
    }


def with_total(usage: Mapping[str, Any] | None, attempts: int = 1) -> dict[str, Any] | None:
    """A usage object with OpenAI's three numbers; of a request that moved, also how often and how far it had come."""
    if usage is None:
        return None
    prompt, answer = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    numbers: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    if attempts > 1:
        numbers["penstock"] = {"attempts": attempts, "resumed_tokens": int(usage.get("resumed_tokens") or 0)}
    return numbers


def timing(record: RequestRecord | Ending) -> dict[str, int | None]:
    """Spans of its life in milliseconds; None: it did not come to that."""

    def span(start: int, end: int) -> int | None:
        return end - start if start and end else None

    return {
        "queue_ms": span(record.created_at_ms, record.begun_at_ms),
        "first_output_ms": span(record.created_at_ms, record.first_output_at_ms),
        "run_ms": span(record.begun_at_ms, record.ended_at_ms),
        "total_ms": span(record.created_at_ms, record.ended_at_ms),
    }


def story_headers(record: RequestRecord | Ending) -> dict[str, str]:
    """What proxies and logs like to see in headers."""
    spans = timing(record)
    parts = [f"{name};dur={spans[key]}" for name, key in (("queue", "queue_ms"), ("run", "run_ms")) if spans[key] is not None]
    headers = {"x-penstock-request": record.id, "x-penstock-attempt": str(record.attempt)}
    if record.worker:
        headers["x-penstock-worker"] = record.worker
    if parts:
        headers["server-timing"] = ", ".join(parts)
    return headers


def etag_of(document: Mapping[str, Any]) -> str:
    """A validator that changes whenever anything shown does."""
    return f'"{hashlib.sha256(msgspec.json.encode(document)).hexdigest()[:20]}"'


def dead_document(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as GET /v1/dead lists it."""
    base = f"/v1/dead/{quote(letter.request)}"
    return {
        "id": letter.request,
        "object": "dead_letter",
        "model": letter.model,
        "code": letter.code,
        "message": letter.message,
        "charged": letter.charged,
        "crashes": letter.crashes,
        "worker": letter.worker or None,
        "at_ms": letter.at_ms,
        "links": {"self": base, "retry": f"{base}/retry", "request": f"/v1/requests/{quote(letter.request)}"},
    }


def queue_document(stats: QueueStats) -> dict[str, Any]:
    """A model's lines as GET /v1/queues shows them."""
    return {
        "object": "queue",
        "model": stats.model,
        "paused": stats.paused,
        "backlog": stats.backlog,
        "oldest_wait_ms": stats.oldest_wait_ms,
        "running": stats.running,
        "parked": stats.parked,
        "lines": [
            {"priority": line.priority, "backlog": line.backlog, "oldest_wait_ms": line.oldest_wait_ms} for line in stats.lines
        ],
        "totals": dict(stats.totals),
    }


def worker_document(beat: Heartbeat, now_ms: int) -> dict[str, Any]:
    """A worker as GET /v1/workers shows it."""
    return {
        "object": "worker",
        "id": beat.id,
        "host": beat.host,
        "pid": beat.pid,
        "model": beat.model,
        "engine": beat.engine,
        "state": beat.state,
        "progress": beat.progress or None,
        "error": beat.error or None,
        "gpu": beat.gpu,
        "memory": {"rss_bytes": beat.rss_bytes},
        "running": beat.held,
        "held_tokens": beat.held_tokens,
        "limit_tokens": beat.limit_tokens,
        "slots": beat.slots,
        "weight": beat.weight,
        "prefill_weight": beat.prefill_weight,
        "waiting": beat.waiting,
        "room": beat.room,
        "tokens_per_s": beat.tokens_per_s,
        "probe": _probe_document(beat, now_ms),
        "pool": beat.pool or None,
        "launch": beat.launch or None,
        "started_at_ms": beat.started_at_ms,
        "heartbeat_age_ms": max(0, now_ms - beat.beat_at_ms),
    }


def _probe_document(beat: Heartbeat, now_ms: int) -> dict[str, Any] | None:
    probe = beat.probe
    if probe is None:
        return None
    return {"ok": probe.ok, "age_ms": max(0, now_ms - probe.at_ms), "took_ms": round(probe.took_s * 1000)}


def is_ended(state: RequestState) -> bool:
    """Whether nothing more will come."""
    return state in ENDINGS
