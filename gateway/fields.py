"""The fields of a request body: their types and limits, and which of them an engine of ours cannot honour. Pure.

Never here: reading bodies (bodies.py), prices and contexts (admission.py).
"""

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from dispatch.errors import PenstockError
from dispatch.scores import Strategy
from dispatch.states import OnDisconnect, Priority

MAX_MESSAGES = 1024
MAX_STOPS = 8
MAX_STOP_CHARACTERS = 64
MAX_SESSION_CHARACTERS = 255
_LARGEST = 2**31 - 1

_Count = Annotated[int, Meta(ge=1, le=_LARGEST)]
WebhookEvent = Literal["completed", "failed", "cancelled", "expired"]
_Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]
_T = TypeVar("_T", bound=msgspec.Struct)


class StreamOptions(msgspec.Struct, kw_only=True):
    """OpenAI's."""

    include_usage: bool | None = None


class Sampled(msgspec.Struct, kw_only=True):
    """What every shape of request may carry. null means: not given."""

    model: Annotated[str, Meta(min_length=1, max_length=128)]
    max_tokens: _Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_LARGEST)] | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def wanted_tokens(self) -> int | None:
        """The answer's limit, if one was given."""
        return self.max_tokens


class Spoken(Sampled, kw_only=True):
    """What the OpenAI API's requests may say that they belong to. Some put anything into `user`: only a text counts."""

    prompt_cache_key: Annotated[str, Meta(max_length=MAX_SESSION_CHARACTERS)] | None = None
    user: Any = None


class ChatFields(Spoken, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: _Count | None = None

    def wanted_tokens(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens or self.max_tokens


class CompletionFields(Spoken, kw_only=True):
    """POST /v1/completions."""

    prompt: str | Annotated[list[Any], Meta(min_length=1)]


class WebhookFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who is told of an ending, and of which: of all, if none is named."""

    url: str
    events: Annotated[list[WebhookEvent], Meta(min_length=1, max_length=16)] | None = None


class NativeFields(Sampled, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/requests: one of messages, prompt and input, and how to queue it."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    prompt: str | Annotated[list[Any], Meta(min_length=1)] | None = None
    input: Any = msgspec.UNSET
    max_completion_tokens: _Count | None = None
    priority: Priority | None = None
    deadline_seconds: Annotated[float, Meta(gt=0)] | None = None
    on_disconnect: OnDisconnect | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=100)] | None = None
    strategy: Strategy | None = None
    session: Annotated[str, Meta(min_length=1, max_length=MAX_SESSION_CHARACTERS)] | None = None
    webhook: str | WebhookFields | None = None

    def wanted_tokens(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens or self.max_tokens


CONSUMED = frozenset(
    {
        "priority",
        "deadline_seconds",
        "on_disconnect",
        "max_attempts",
        "strategy",
        "session",
        "webhook",
        "stream",
        "stream_options",
        "model",
    }
)
"""Fields that Penstock itself acts on: an upstream server never sees them."""


def _given(value: Any) -> bool:
    return bool(value)


def _not_zero(value: Any) -> bool:
    return value not in (0, 0.0)


def _not_one(value: Any) -> bool:
    return value not in (1, 1.0)


# field -> whether this value would change the answer. Engines of ours do none of it; upstream servers are asked.
_UNSUPPORTED: Mapping[str, Callable[[Any], bool]] = {
    "logprobs": _given,
    "top_logprobs": _given,
    "prompt_logprobs": _given,
    "tools": _given,
    "tool_choice": lambda v: v not in ("none", "auto"),
    "functions": _given,
    "function_call": lambda v: v not in ("none", "auto"),
    "response_format": lambda v: not (isinstance(v, dict) and v.get("type") == "text"),
    "frequency_penalty": _not_zero,
    "presence_penalty": _not_zero,
    "repetition_penalty": _not_one,
    "logit_bias": _given,
    "best_of": _not_one,
    "echo": _given,
    "suffix": _given,
    "audio": _given,
    "modalities": lambda v: v != ["text"],
    "min_p": _not_zero,
    "min_tokens": _not_zero,
    "guided_json": _given,
    "guided_regex": _given,
    "guided_choice": _given,
    "guided_grammar": _given,
    "chat_template": _given,
    "chat_template_kwargs": _given,
    "prompt_embeds": _given,
    "web_search_options": _given,
}

_WORDS: Mapping[str, type[StrEnum]] = {"priority": Priority, "on_disconnect": OnDisconnect, "strategy": Strategy}

_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_MISSING = re.compile(r"missing required field `([^`]*)`")


def parse(body: dict[str, Any], kind: type[_T]) -> _T:
    """The body's fields, or PenstockError("invalid_request") naming the one at fault."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        at = _AT.search(text)
        unknown, missing = _UNKNOWN.search(text), _MISSING.search(text)
        param = unknown.group(1) if unknown else missing.group(1) if missing else at.group(1) if at else None
        if unknown:
            hint = "Take it out; the OpenAI routes pass unknown fields through, this one refuses them."
        elif missing:
            hint = f"Add `{param}`."
        elif param is not None and param in _WORDS:
            hint = f"Send one of {', '.join(_WORDS[param])}."
        else:
            hint = "Send a value of that type and range."
        what = _AT.sub("", text)
        raise PenstockError("invalid_request", f"{param or 'body'}: {what}.", hint=hint, param=param) from error


def refuse_unsupported(body: Mapping[str, Any], model: str, *, upstream: bool) -> None:
    """Refuse what would silently give another answer than asked for. Raises PenstockError("unsupported")."""
    if body.get("n") not in (None, 1):
        raise _unsupported("n", "Penstock gives one answer a request", "Send n requests.")
    if upstream:
        return
    for name in body:
        matters = _UNSUPPORTED.get(name)
        if matters is not None and body[name] is not None and matters(body[name]):
            raise _unsupported(
                name, f"the engine of {model!r} does not do {name}", "Leave it out, or use a model served by `--engine upstream`."
            )


def _unsupported(name: str, why: str, hint: str) -> PenstockError:
    return PenstockError("unsupported", f"{name}: {why}.", hint=hint, param=name)
