"""Counting a prompt before any work: chat template and tokenizer of a model's card, without torch or transformers.

The rendering follows transformers' own environment (sandbox, trimmed blocks, its filters and globals), so that the ids
equal what the engine would compute. Never here: limits and refusals by size (admission.py).
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.reports import TokenizerFiles

_KEPT = 16  # models whose tokenizer is kept parsed: a large vocabulary takes tens of MB
_INLINE_CHARACTERS = 4096  # what is shorter takes less time than a hop to a thread


class ModelTokenizer:
    """One model's tokenizer and chat template."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._tokenizer: Any = Tokenizer.from_str(files.tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = dict(files.special_tokens)
        self._template = _environment().from_string(files.chat_template) if files.chat_template else None
        self.vocabulary: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    async def chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """The ids of a chat with the template applied, ready for the assistant's turn."""
        size = sum(len(str(m.get("content") or "")) for m in messages)
        if size <= _INLINE_CHARACTERS:
            return self._chat(messages)
        return await asyncio.to_thread(self._chat, messages)

    async def text(self, prompt: str) -> tuple[int, ...]:
        """The ids of a plain prompt, with the special tokens the tokenizer adds by itself."""
        if len(prompt) <= _INLINE_CHARACTERS:
            return self._encode(prompt, True)
        return await asyncio.to_thread(self._encode, prompt, True)

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        if self._template is None:
            raise PenstockError(
                "unsupported",
                "This model has no chat template.",
                hint="Use POST /v1/completions with a prompt.",
                param="messages",
            )
        try:
            rendered = self._template.render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **self._special
            )
        except Exception as error:
            # The template is foreign code: it may raise anything, most often its own words on what is wrong with the chat.
            raise PenstockError(
                "invalid_request",
                f"The model's chat template refused the messages: {str(error)[:200]}.",
                hint="Check the roles and their order.",
                param="messages",
            ) from error
        return self._encode(rendered, False)

    def _encode(self, text: str, special: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=special).ids)


class Tokenizers:
    """The tokenizers of all cards, parsed once and kept while used."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._kept: OrderedDict[str, ModelTokenizer] = OrderedDict()
        self._loading: dict[str, asyncio.Task[ModelTokenizer]] = {}

    async def get(self, sha256: str) -> ModelTokenizer:
        """The tokenizer of that content; parsed in a thread, once for all who wait."""
        found = self._kept.get(sha256)
        if found is not None:
            self._kept.move_to_end(sha256)
            return found
        task = self._loading.get(sha256)
        if task is None:
            task = self._loading[sha256] = asyncio.create_task(self._load(sha256))
            task.add_done_callback(lambda _: self._loading.pop(sha256, None))
        return await asyncio.shield(task)

    async def _load(self, sha256: str) -> ModelTokenizer:
        files = await self._fleet.tokenizer(sha256)
        if files is None:
            raise PenstockError(
                "bad_record",
                f"The tokenizer {sha256[:12]} that a model's card names is not in Redis.",
                hint="Restart one worker of that model: it publishes the files anew.",
            )
        made = await asyncio.to_thread(ModelTokenizer, files)
        self._kept[sha256] = made
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return made


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    environment.globals["dict"] = _plain_dict
    return environment


class _Namespace(jinja2.utils.Namespace):
    """Templates keep their variables here, but nothing that begins with an underscore: that way lie CPython's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a template may not store {name!r}")


def _plain_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here it only passes them through."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 (templates mean the local day)
