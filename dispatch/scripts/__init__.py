"""The scripts: one .lua file a transition, put together from `lib/`, and called by name. Only `dispatch/queue.py` calls them,
`dispatch/outbox.py` those of webhooks, and `dispatch/scale_store.py` the autoscaler's.

A script states its contract above itself: `-- use:` names the library files it stands on, `-- args:` its arguments. With
`-- each:` one call takes several requests, with so many words each, and replies for each (docs/decisions/0027).
Named Lua locals are made from all, so no body says ARGV[7]; the numbers of rules and scores stand as names in capitals.
`-- reads:` names the fields that `read_these` has of a request (`#`: as a number; `asked:`, `what:` and `grant:` with those of
their words that are wanted). What stands above a line `-- one:` is made once; its `ahead(ids)` is told of all requests of a call
that has several, to look up in one command what each will ask for.
Each runs as a Redis function, named by the hash of its text (docs/decisions/0020): as a script it would make all it is built of
anew with each call. Never here: what a transition means to gateway or worker.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import resources
from operator import itemgetter
from typing import Any

from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError

from dispatch import scores
from dispatch.batching import Batched
from dispatch.rules import QueueRules
from dispatch.scripts.generated import SHARED, reader, run_each, run_once, words

NAMES = (
    "enqueue",
    "park",
    "begin",
    "append",
    "finish",
    "renew",
    "release",
    "reprice",
    "retry",
    "abandon",
    "cancel",
    "sweep",
    "attach",
    "detach",
    "keep_reading",
    "pause",
    "take_owed",
    "note_try",
)

SCALE_NAMES = ("lead", "resign", "order")
"""The autoscaler's: they stand on a group's leader (`lib/scale.lua`), know no rules and are called by scale_store.py."""

_SCORES = (
    "CANDIDATES",
    "WAIT_GROWTH",
    "WAIT_KNEE_S",
    "ANSWER_TOKENS",
    "HELD_TOKENS",
    "TYPICAL_PROMPT_TOKENS",
    "PREFILL_SEED",
    "BOUND",
    "OPEN_S",
    "SLACK",
    "YOUNGER",
)


_UNKNOWN = "Function not found"
_REFUSED = re.compile("unknown command|NOPERM|.*has no permissions", re.IGNORECASE)


class Script:
    """One composed script, called with named arguments."""

    def __init__(
        self, name: str, body: str, flags: tuple[str, ...], args: tuple[str, ...], each: tuple[str, ...], takes_rest: bool
    ) -> None:
        self.name = name
        self.function = f"penstock_{name}_{hashlib.sha1(body.encode()).hexdigest()[:16]}"
        listed = ", ".join(repr(flag) for flag in flags)
        self.library = (
            f"#!lua name={self.function}\n{body}\n"
            f"redis.register_function{{function_name = {self.function!r}, callback = run, flags = {{{listed}}}}}\n"
        )
        self.source = f"#!lua{' flags=' + ','.join(flags) if flags else ''}\n{body}\nreturn run(KEYS, ARGV)\n"
        self._sha = hashlib.sha1(self.source.encode()).hexdigest()
        self._as_function = True
        self._args = args
        self._each = each
        self._takes_rest = takes_rest
        self._known = frozenset((*args, *each))
        self._shared = _values_of(args)
        self._own = _values_of(each)

    async def __call__(
        self, redis: Batched, key: str, rest: tuple[str | int, ...], values: Mapping[str, str | int | float | bytes]
    ) -> Any:
        """Run it on the shard whose timers are `key`, or on a group's leader. Loads it where the server does not know it."""
        if rest and not self._takes_rest:
            raise TypeError(f"{self.name}.lua takes no further arguments")
        if values.keys() != self._known:
            raise TypeError(f"{self.name}.lua has not these arguments: {', '.join(values.keys() ^ self._known)}")
        shared = (1, key, *self._shared(values), *rest)
        ask = partial(redis.join, self._own(values)) if self._each else redis.execute
        if self._as_function:
            try:
                return await ask("FCALL", self.function, *shared)
            except ResponseError as error:
                self._as_function = not _REFUSED.match(str(error))
                if self._as_function and str(error) != _UNKNOWN:
                    raise
        if self._as_function and await self._load(redis):
            try:
                return await ask("FCALL", self.function, *shared)
            except ResponseError as error:
                if str(error) != _UNKNOWN:  # forgotten again between the two
                    raise
        try:
            return await ask("EVALSHA", self._sha, *shared)
        except NoScriptError:
            return await ask("EVAL", self.source, *shared)

    async def _load(self, redis: Batched) -> bool:
        """Whether the server knows the function now. At its memory limit it takes no more for a while, some take none at all:
        the same text then runs as a script."""
        try:
            await redis.execute("FUNCTION", "LOAD", "REPLACE", self.library)
        except (OutOfMemoryError, ReadOnlyError):
            return False
        except ResponseError as error:
            if not _REFUSED.match(str(error)):
                raise
            self._as_function = False
            return False
        return True


def _values_of(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """The values under these names, in their order."""
    if len(names) < 2:
        return lambda values: tuple(values[name] for name in names)
    return itemgetter(*names)


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _header(name: str, body: str, word: str) -> tuple[str, ...]:
    found = re.search(rf"^-- {word}: (.*)$", body, re.MULTILINE)
    if found is None:
        raise ValueError(f"{name}.lua has no '-- {word}:' line")
    return tuple(found.group(1).split())


def _write_in(source: str, rules: QueueRules) -> str:
    """The numbers of rules and scores in the place of their names: a chunk of Lua has room for 200 names."""
    numbers = {field.upper(): value for field, value in dataclasses.asdict(rules).items()}
    numbers |= {name: getattr(scores, name) for name in _SCORES}
    return re.sub(rf"\b({'|'.join(numbers)})\b", lambda found: repr(numbers[found[1]]), source)


def compose(name: str, rules: QueueRules | None, *, edit: Mapping[str, tuple[str, str]] | None = None) -> Script:
    """The script `name` under `rules` (None: one of the autoscaler's).

    `edit` {file: (old, new)} plants a bug, for the tests that prove it is caught.
    """

    def text(file: str) -> str:
        source = _read(file)
        if edit and file in edit:
            old, new = edit[file]
            if old not in source:
                raise ValueError(f"{file} has no {old!r}")
            source = source.replace(old, new)
        return source

    body = text(f"{name}.lua")
    shebang, body = body.split("\n", 1)
    if not shebang.startswith("#!lua"):
        raise ValueError(f"{name}.lua does not begin with #!lua")
    flags = tuple(shebang.partition("flags=")[2].split(",")) if "flags=" in shebang else ()
    args = _header(name, body, "args")
    takes_rest = args[-1] == "..."
    args = args[:-1] if takes_rest else args
    each = _header(name, body, "each") if "\n-- each:" in body else ()
    parts = [f"local {', '.join(SHARED)}", *words()]
    parts += [text(f"lib/{library}.lua") for library in _header(name, body, "use")]
    if "\n-- reads:" in body:
        parts += reader(_header(name, body, "reads"))
    once, marked, body = body.rpartition("\n-- one:\n")
    own = [arg for arg in (*args, *each) if arg not in SHARED] + ["rest"] * takes_rest
    parts += [once, f"local function one({', '.join(own)})", body, "end"]
    parts += run_each(each, looks_ahead=bool(marked)) if each else run_once(args, takes_rest=takes_rest)
    source = "\n".join(parts)
    return Script(name, _write_in(source, rules) if rules else source, flags, args, each, takes_rest)


@cache
def compose_all(rules: QueueRules) -> Mapping[str, Script]:
    """Every script under `rules`, by name."""
    return {name: compose(name, rules) for name in NAMES}


@cache
def compose_scale() -> Mapping[str, Script]:
    """The autoscaler's scripts, by name."""
    return {name: compose(name, None) for name in SCALE_NAMES}
