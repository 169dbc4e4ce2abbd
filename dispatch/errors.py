"""What can go wrong, whose fault it is, how HTTP says it, and whether trying again helps. Pure.

Every error says what happened, why, and what to do. Never here: the HTTP response itself (gateway/problems.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Fault(StrEnum):
    """Who has to change something."""

    CLIENT = "client"
    OPERATOR = "operator"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One row of the table below."""

    status: int
    fault: Fault
    retryable: bool
    title: str


# code -> kind. A code never changes its meaning; docs/errors.md is printed from here.
ERROR_KINDS: Mapping[str, ErrorKind] = {
    "invalid_request": ErrorKind(400, Fault.CLIENT, False, "The request is not valid"),
    "invalid_event_id": ErrorKind(400, Fault.CLIENT, False, "The event id to resume from is not one of ours"),
    "unauthorized": ErrorKind(401, Fault.CLIENT, False, "No valid API key"),
    "model_not_found": ErrorKind(404, Fault.CLIENT, False, "No such model"),
    "pool_not_found": ErrorKind(404, Fault.CLIENT, False, "No such pool"),
    "request_not_found": ErrorKind(404, Fault.CLIENT, False, "No such request"),
    "not_found": ErrorKind(404, Fault.CLIENT, False, "No such page"),
    "method_not_allowed": ErrorKind(405, Fault.CLIENT, False, "This page does not take that method"),
    "conflict": ErrorKind(409, Fault.CLIENT, False, "The request is not in a state for that"),
    "expired": ErrorKind(410, Fault.CLIENT, False, "Its output is no longer kept"),
    "stream_expired": ErrorKind(410, Fault.CLIENT, False, "Its stream is no longer kept"),
    "payload_too_large": ErrorKind(413, Fault.CLIENT, False, "The body is too large"),
    "unsupported_media_type": ErrorKind(415, Fault.CLIENT, False, "The body is not plain JSON"),
    "idempotency_mismatch": ErrorKind(422, Fault.CLIENT, False, "The Idempotency-Key was used with another body"),
    "context_length_exceeded": ErrorKind(400, Fault.CLIENT, False, "Prompt and answer do not fit the model's context"),
    "unschedulable": ErrorKind(422, Fault.CLIENT, False, "No worker can ever hold this request"),
    "model_loading": ErrorKind(503, Fault.SERVER, True, "The model's first worker is starting"),
    "queue_full": ErrorKind(429, Fault.SERVER, True, "The backlog is full"),
    "draining": ErrorKind(503, Fault.SERVER, True, "This gateway is shutting down"),
    "redis_unavailable": ErrorKind(503, Fault.OPERATOR, True, "Redis does not answer"),
    "redis_unsuitable": ErrorKind(503, Fault.OPERATOR, False, "Redis cannot be used"),
    "not_replicated": ErrorKind(503, Fault.OPERATOR, True, "No replica has it yet"),
    "stream_rewound": ErrorKind(500, Fault.SERVER, True, "Redis went back in time under this answer"),
    "out_of_memory": ErrorKind(503, Fault.OPERATOR, True, "Redis is at its memory limit"),
    "cancelled": ErrorKind(409, Fault.CLIENT, False, "The request was cancelled"),
    "deadline_exceeded": ErrorKind(504, Fault.SERVER, False, "The deadline passed"),
    "attempts_exhausted": ErrorKind(500, Fault.SERVER, False, "All attempts were used up"),
    "engine_error": ErrorKind(500, Fault.SERVER, True, "The engine failed"),
    "engine_crashed": ErrorKind(500, Fault.SERVER, True, "The engine died"),
    "engine_out_of_memory": ErrorKind(500, Fault.SERVER, True, "The engine ran out of memory"),
    "upstream_error": ErrorKind(502, Fault.SERVER, True, "The upstream server failed"),
    "upstream_rejected": ErrorKind(400, Fault.CLIENT, False, "The upstream server refused the request"),
    "unsupported": ErrorKind(400, Fault.CLIENT, False, "This model's engine cannot do that"),
    "bad_setting": ErrorKind(500, Fault.OPERATOR, False, "A setting is not valid"),
    "bad_record": ErrorKind(500, Fault.OPERATOR, False, "A record in Redis cannot be read"),
    "launcher_failed": ErrorKind(503, Fault.OPERATOR, True, "A launcher could not do what it was asked"),
    "stale_orders": ErrorKind(409, Fault.OPERATOR, False, "A newer leader has given orders"),
    "internal_error": ErrorKind(500, Fault.SERVER, False, "A bug in Penstock"),
}


class PenstockError(Exception):
    """An error with a code from `ERROR_KINDS`: `message` says what and why, `hint` what to do.

    `param` names the offending field, `retry_after_s` how long to wait, `extra` numbers worth showing.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        retry_after_s: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.kind = ERROR_KINDS[code]
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after_s = retry_after_s
        self.extra: Mapping[str, Any] = extra or {}

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()
