"""Before any work is queued: is the request valid, does it fit, what does it cost? What it returns is ready for enqueue.

A request that names no max_tokens gets what is left of the model's context, at most `DEFAULT_MAX_TOKENS`, and no more
than the largest worker could ever hold: that number is stored, priced and honoured. Only an upstream server is not told
it: it ends an answer as it would for any other client that names no limit.
Never here: HTTP bodies (bodies.py), the types of fields (fields.py), Redis beyond cards and tokenizers.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dispatch import pricing
from dispatch.errors import PenstockError
from dispatch.messages import InferenceRequest, InputKind, NewRequest, Sampling, encode, new_id
from dispatch.reports import ModelCard
from dispatch.scores import Strategy
from dispatch.settings import QueueSettings
from dispatch.states import OnDisconnect, Priority
from gateway.asking import asked, checked_messages, param_of
from gateway.context import Gateway
from gateway.fields import CONSUMED, NativeFields, Sampled, refuse_unsupported
from gateway.sessions import hashed, session_of

DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request is to be queued, whatever it asks."""

    deadline_ms: int
    priority: Priority = Priority.NORMAL
    max_attempts: int = 3
    on_disconnect: OnDisconnect = OnDisconnect.CONTINUE
    on_disconnect_is_default: bool = True
    tenant: str = ""
    reader: str = ""
    idempotency: str = ""
    body_hash: str = ""
    strategy: Strategy | None = None
    session: str = ""
    address: str = ""
    webhook: str = ""
    webhook_events: str = ""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may be queued. `prompt_tokens` is counted, or estimated where the card has no tokenizer."""

    new: NewRequest
    card: ModelCard
    prompt_tokens: int
    max_tokens: int


async def admit(gateway: Gateway, fields: Sampled, body: Mapping[str, Any], terms: Terms) -> Admitted:
    """Check, count and price a request. Raises PenstockError naming the field and the numbers."""
    card = await gateway.cards.get(fields.model)
    upstream = card.engine == "upstream"
    refuse_unsupported(body, card.name, upstream=upstream)
    kind, messages, prompt, given_ids, document = asked(fields)
    if kind not in card.kinds:
        takes = ", ".join(card.kinds)
        raise PenstockError(
            "unsupported",
            f"Model {card.name!r} takes {takes}, not {kind}.",
            hint="Use another model or route.",
            param=param_of(kind),
        )
    if kind is InputKind.CHAT:
        messages = checked_messages(messages, upstream)
    ids = given_ids
    if card.tokenizer and kind is not InputKind.OPAQUE:
        tokenizer = await gateway.tokenizers.get(card.tokenizer)
        if kind is InputKind.CHAT:
            ids = await tokenizer.chat(messages)
        elif given_ids:
            _refuse_foreign_ids(given_ids, tokenizer.vocabulary)
        else:
            ids = await tokenizer.text(prompt)
            if not ids:
                raise PenstockError("invalid_request", "prompt: it holds no token.", hint="Send some text.", param="prompt")
    prompt_tokens = len(ids) or pricing.estimate_prompt_tokens(kind, messages, prompt, document)
    max_tokens = _fitting_max_tokens(card, prompt_tokens, fields.wanted_tokens(), param_of(kind))
    most = pricing.cost_tokens(prompt_tokens, max_tokens)
    if most > card.max_cost_tokens:
        raise PenstockError(
            "unschedulable",
            f"It needs {most} KV tokens (prompt {prompt_tokens} + max_tokens {max_tokens}, in whole pages); the largest worker "
            f"of {card.name!r} ever seen holds {card.max_cost_tokens}.",
            hint="Shorten the prompt, ask for fewer max_tokens, or start a worker with more KV memory.",
            param="max_tokens",
            extra={
                "cost_tokens": most,
                "prompt_tokens": prompt_tokens,
                "max_tokens": max_tokens,
                "max_cost_tokens": card.max_cost_tokens,
            },
        )
    cost = most
    if card.moves_overruns and kind is not InputKind.OPAQUE and not fields.ignore_eos:
        cost = pricing.learned_cost_tokens(prompt_tokens, max_tokens, gateway.lengths.get(card.name))
    request = InferenceRequest(
        id=new_id(gateway.queue.shard),
        model=card.name,
        kind=kind,
        sampling=_sampling(fields, card, max_tokens),
        prompt_token_ids=ids,
        messages=tuple(messages),
        prompt=prompt,
        input=document,
        body={k: v for k, v in body.items() if k not in CONSUMED} if upstream else _for_ours(fields),
        cost_tokens=cost,
    )
    strategy = terms.strategy or gateway.settings.queue.strategy_of(card.name)
    new = NewRequest(
        id=request.id,
        model=card.name,
        input=encode(request),
        kind=kind,
        cost_tokens=cost,
        deadline_ms=terms.deadline_ms,
        priority=terms.priority,
        tenant=terms.tenant,
        max_attempts=terms.max_attempts,
        on_disconnect=terms.on_disconnect,
        reader=terms.reader,
        idempotency=terms.idempotency,
        body_hash=terms.body_hash,
        prompt_tokens=prompt_tokens,
        strategy=strategy,
        session=terms.session or (hashed("address", terms.address, terms.tenant) if strategy is Strategy.SESSION else ""),
        webhook=terms.webhook,
        webhook_events=terms.webhook_events,
    )
    return Admitted(new, card, prompt_tokens, max_tokens)


def terms_from(
    headers: Mapping[str, str],
    raw_body: bytes,
    settings: QueueSettings,
    tenant: str,
    fields: Sampled,
    on_disconnect: OnDisconnect,
    *,
    address: str,
    reader: str,
    webhook: tuple[str, str] = ("", ""),
) -> Terms:
    """The terms of a request, from its headers and its body; on the native API the body wins. `on_disconnect` is the default.

    `address` is the client's; `webhook` who is told of its ending, and of which endings.
    """
    native = fields if isinstance(fields, NativeFields) else None
    deadline_s = native.deadline_seconds if native and native.deadline_seconds else _seconds(headers, "x-request-timeout")
    if deadline_s is None:
        deadline_s = settings.deadline_s
    if deadline_s > settings.max_deadline_s:
        raise PenstockError(
            "invalid_request",
            f"deadline_seconds: {deadline_s:g} s is longer than the {settings.max_deadline_s:g} s allowed.",
            hint="Ask for less, or let the operator raise PENSTOCK_QUEUE__MAX_DEADLINE_S.",
            param="deadline_seconds",
        )
    priority = native.priority if native and native.priority else _one_of(headers, "x-penstock-priority", Priority)
    wish = native.on_disconnect if native and native.on_disconnect else _one_of(headers, "x-penstock-on-disconnect", OnDisconnect)
    key = headers.get("idempotency-key", "")
    if len(key) > 255:
        raise PenstockError(
            "invalid_request", "Idempotency-Key: longer than 255 characters.", hint="Send a UUID.", param="idempotency-key"
        )
    return Terms(
        deadline_ms=max(1, int(deadline_s * 1000)),
        priority=priority or Priority.NORMAL,
        max_attempts=native.max_attempts if native and native.max_attempts else settings.max_attempts,
        on_disconnect=wish or on_disconnect,
        on_disconnect_is_default=wish is None,
        tenant=tenant,
        idempotency=hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest() if key else "",
        body_hash=hashlib.sha256(raw_body).hexdigest() if key else "",
        strategy=native.strategy if native and native.strategy else _one_of(headers, "x-penstock-strategy", Strategy),
        session=session_of(headers, fields, tenant),
        address=address,
        reader=reader,
        webhook=webhook[0],
        webhook_events=webhook[1],
    )


def _refuse_foreign_ids(ids: tuple[int, ...], vocabulary: int) -> None:
    if any(i < 0 or i >= vocabulary for i in ids):
        raise PenstockError(
            "invalid_request",
            f"prompt: token ids of this model run from 0 to {vocabulary - 1}.",
            hint="Use this model's tokenizer.",
            param="prompt",
        )


def _fitting_max_tokens(card: ModelCard, prompt_tokens: int, wanted: int | None, param: str) -> int:
    left = card.context_tokens - prompt_tokens
    if left < 1 or (wanted is not None and wanted > left):
        asked = f" + {wanted} answer (max_tokens)" if wanted is not None else ""
        raise PenstockError(
            "context_length_exceeded",
            f"{prompt_tokens} prompt{asked} tokens do not fit the {card.context_tokens} tokens of {card.name!r}.",
            hint="Shorten the prompt." if left < 1 else f"Shorten the prompt, or ask for at most {left} max_tokens.",
            param=param if left < 1 else "max_tokens",
            extra={"prompt_tokens": prompt_tokens, "max_tokens": wanted, "context_tokens": card.context_tokens},
        )
    if wanted is not None:
        return wanted
    page = pricing.cost_tokens(1, 0)
    holds = card.max_cost_tokens // page * page - prompt_tokens
    return max(1, min(DEFAULT_MAX_TOKENS, left, holds))


def _for_ours(fields: Sampled) -> dict[str, Any]:
    """What engines of ours look for beside the sampling: load tools ask for answers of an exact length."""
    return {"ignore_eos": True} if fields.ignore_eos else {}


def _sampling(fields: Sampled, card: ModelCard, max_tokens: int) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=card.temperature if fields.temperature is None else fields.temperature,
        top_p=card.top_p if fields.top_p is None else fields.top_p,
        top_k=max(0, card.top_k if fields.top_k is None else fields.top_k),
        stop=fields.stops(),
        seed=fields.seed,
    )


def _seconds(headers: Mapping[str, str], name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 < seconds < float("inf"):
        raise PenstockError(
            "invalid_request", f"{name}: {text[:40]!r} is no number of seconds.", hint="Send e.g. 60.", param=name
        )
    return seconds


def _one_of(headers: Mapping[str, str], name: str, kind: type[Any]) -> Any:
    text = headers.get(name)
    if text is None:
        return None
    try:
        return kind(text.strip().lower())
    except ValueError as error:
        words = ", ".join(member.value for member in kind)
        raise PenstockError(
            "invalid_request", f"{name}: {text[:40]!r} is none of {words}.", hint=f"Send one of {words}.", param=name
        ) from error
