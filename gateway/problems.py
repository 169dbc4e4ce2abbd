"""THE error -> HTTP mapping: every error leaves this gateway as RFC 9457 problem+json that the OpenAI clients understand, too.

Never here: what counts as an error (dispatch/errors.py), logging of prompts or outputs.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from dispatch.errors import ERROR_KINDS, Fault, PenstockError

CLIENT_LEFT = 499
"""Nobody reads such an answer; the access line tells it."""
PROBLEM_TYPE = "application/problem+json"
_TYPE = "urn:penstock:error:"  # a name, not an address: there is no one host of ours
_RETRY_AFTER_RANGE_S = (1, 120)  # the OpenAI clients wait at most 120 s, and do not retry at all when told more
_DEFAULT_RETRY_AFTER_S = 5
_RETRY_STATUSES = frozenset({429, 503})


def openai_type(status: int) -> str:
    """The `type` word of OpenAI's error object for an HTTP status."""
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def error_member(error: PenstockError) -> dict[str, Any]:
    """The `error` object of the OpenAI API, for bodies and for frames within a stream."""
    member: dict[str, Any] = {
        "message": str(error),
        "type": openai_type(error.kind.status),
        "param": error.param,
        "code": error.code,
    }
    if error.hint:
        member["hint"] = error.hint
    return member


def problem(error: PenstockError, *, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer to an error."""
    kind = error.kind
    body: dict[str, Any] = {
        "type": f"{_TYPE}{error.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": error.message,
        **error.extra,
        "error": error_member(error),
    }
    if error.hint:
        body["hint"] = error.hint
    if error.param:
        body["param"] = error.param
    sent = {"cache-control": "no-store", **(headers or {})}
    if kind.retryable and kind.status in _RETRY_STATUSES:
        low, high = _RETRY_AFTER_RANGE_S
        sent["retry-after"] = str(min(high, max(low, error.retry_after_s or _DEFAULT_RETRY_AFTER_S)))
    if kind.status == 413:
        sent["connection"] = "close"  # the rest of the body is not read: nothing more can be said on this connection
    if kind.status == 401:
        sent["www-authenticate"] = 'Bearer realm="penstock"'
    return Response(msgspec.json.encode(body), kind.status, sent, PROBLEM_TYPE)


def ended_badly(state: str, error: Mapping[str, Any] | None) -> PenstockError:
    """The error that a client is told about a request that ended as failed, cancelled or expired."""
    code = str((error or {}).get("code", ""))
    message = str((error or {}).get("message", ""))
    if state == "cancelled":
        return PenstockError("cancelled", message or "The request was cancelled before it was completed.")
    if state == "expired":
        return PenstockError(
            "deadline_exceeded",
            message or "The deadline passed before the request was completed.",
            hint="Ask with a longer deadline, or look at the queue: GET /v1/queues.",
        )
    if code not in ERROR_KINDS:
        code = "engine_error"
    return PenstockError(code, message or ERROR_KINDS[code].title + ".")


def for_status(status: int, detail: str) -> PenstockError:
    """The error for what the framework itself refuses."""
    if status == 404:
        return PenstockError("not_found", "There is no such page here.", hint="The API is under /v1; GET /livez answers always.")
    if status == 405:
        return PenstockError("method_not_allowed", "This page does not take that method.")
    if 400 <= status < 500:
        return PenstockError("invalid_request", detail)
    return PenstockError(
        "internal_error", "Something went wrong in the gateway.", hint="The operator finds the reason in its log."
    )


def is_our_fault(error: PenstockError) -> bool:
    """Whether an operator must hear of it."""
    return error.kind.fault is not Fault.CLIENT
