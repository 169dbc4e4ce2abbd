"""What a request asks: one of messages, prompt and input, checked, in the shape that engines take. Pure.

Never here: whether it fits and what it costs (admission.py).
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from dispatch.errors import PenstockError
from dispatch.messages import InputKind
from gateway.fields import Sampled


def asked(fields: Sampled) -> tuple[InputKind, Sequence[dict[str, Any]], str, tuple[int, ...], Any]:
    """kind, messages, prompt, prompt ids, document."""
    messages = getattr(fields, "messages", None)
    prompt = getattr(fields, "prompt", None)
    document = getattr(fields, "input", msgspec.UNSET)
    named = [n for n, v in (("messages", messages), ("prompt", prompt)) if v is not None] + (
        ["input"] if document is not msgspec.UNSET else []
    )
    if len(named) != 1:
        raise PenstockError(
            "invalid_request",
            f"{'More than one of' if named else 'None of'} messages, prompt and input was sent.",
            hint="Send exactly one of them.",
            param=named[1] if named else "messages",
        )
    if messages is not None:
        return InputKind.CHAT, messages, "", (), None
    if document is not msgspec.UNSET:
        return InputKind.OPAQUE, (), "", (), document
    text, ids = _prompt(prompt)
    return InputKind.COMPLETION, (), text, ids, None


def _prompt(prompt: str | list[Any] | None) -> tuple[str, tuple[int, ...]]:
    if isinstance(prompt, list):
        if len(prompt) == 1 and isinstance(prompt[0], str | list):
            return _prompt(prompt[0])
        if prompt and all(type(i) is int for i in prompt):
            return "", tuple(prompt)
        if all(isinstance(i, str | list) for i in prompt):
            raise PenstockError(
                "unsupported", f"prompt: {len(prompt)} prompts in one request.", hint="Send one request a prompt.", param="prompt"
            )
        raise PenstockError(
            "invalid_request", "prompt: neither a text nor a list of token ids.", hint="Send a string.", param="prompt"
        )
    if not prompt:
        raise PenstockError("invalid_request", "prompt: it is empty.", hint="Send some text.", param="prompt")
    return prompt, ()


def checked_messages(messages: Sequence[dict[str, Any]], upstream: bool) -> Sequence[dict[str, Any]]:
    """The messages, their text parts joined. An `upstream` gets them as they came."""
    checked = []
    for n, message in enumerate(messages):
        at = f"messages[{n}]"
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise PenstockError(
                "invalid_request", f"{at}.role: not a text.", hint="Use system, user or assistant.", param=f"{at}.role"
            )
        if upstream:
            checked.append(message)
            continue
        if isinstance(content, list):
            message = {**message, "content": _joined_parts(content, at)}
        elif not isinstance(content, str) and not (content is None and role == "assistant"):
            raise PenstockError(
                "invalid_request",
                f"{at}.content: not a text.",
                hint="Send a string, or a list of text parts.",
                param=f"{at}.content",
            )
        checked.append(message)
    return checked


def _joined_parts(parts: list[Any], at: str) -> str:
    texts = []
    for n, part in enumerate(parts):
        where = f"{at}.content[{n}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise PenstockError(
                "unsupported",
                f"{where}: this model takes text parts only.",
                hint="Leave out images, audio and files.",
                param=where,
            )
        if not isinstance(part.get("text"), str):
            raise PenstockError("invalid_request", f"{where}.text: not a text.", hint="Send a string.", param=f"{where}.text")
        texts.append(part["text"])
    return "".join(texts)


def param_of(kind: InputKind) -> str:
    """The field that says what is asked."""
    return {InputKind.CHAT: "messages", InputKind.COMPLETION: "prompt", InputKind.OPAQUE: "input"}[kind]
