"""The scripts: one .lua file a transition, put together from `lib/`, and called by name. Only `dispatch/queue.py` calls them,
`dispatch/outbox.py` those of webhooks, and `dispatch/scale_store.py` the autoscaler's.

A script states its contract above itself: `-- use:` names the library files it stands on, `-- args:` its arguments.
Named Lua locals are made from both, so no body says ARGV[7]; the numbers of rules and scores are locals in capitals.
Each runs as a Redis function, named by the hash of its text (docs/decisions/0020): as a script it would make all it is built of
anew with each call. Never here: what a transition means to gateway or worker.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError

from dispatch import scores
from dispatch.batching import Batched
from dispatch.rules import QueueRules

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


_SHARED = ("now", "salt")
"""Arguments that the library files read, too: they stand above them all."""

_UNKNOWN = "Function not found"
_REFUSED = re.compile("unknown command|NOPERM|.*has no permissions", re.IGNORECASE)


class Script:
    """One composed script, called with named arguments."""

    def __init__(self, name: str, body: str, flags: tuple[str, ...], args: tuple[str, ...], takes_rest: bool) -> None:
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
        self._takes_rest = takes_rest

    async def __call__(
        self, redis: Batched, key: str, rest: tuple[str | int, ...] = (), **values: str | int | float | bytes
    ) -> Any:
        """Run it on the shard whose timers are `key`, or on a group's leader. Loads it where the server does not know it."""
        if rest and not self._takes_rest:
            raise TypeError(f"{self.name}.lua takes no further arguments")
        arguments = [values.pop(name) for name in self._args]
        if values:
            raise TypeError(f"{self.name}.lua has no argument {', '.join(values)}")
        call = (self.function, 1, key, *arguments, *rest)
        if self._as_function:
            try:
                return await redis.execute("FCALL", *call)
            except ResponseError as error:
                self._as_function = not _REFUSED.match(str(error))
                if self._as_function and str(error) != _UNKNOWN:
                    raise
        if self._as_function and await self._load(redis):
            try:
                return await redis.execute("FCALL", *call)
            except ResponseError as error:
                if str(error) != _UNKNOWN:  # forgotten again between the two
                    raise
        try:
            return await redis.execute("EVALSHA", self._sha, 1, key, *arguments, *rest)
        except NoScriptError:
            return await redis.execute("EVAL", self.source, 1, key, *arguments, *rest)

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


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _header(name: str, body: str, word: str) -> tuple[str, ...]:
    found = re.search(rf"^-- {word}: (.*)$", body, re.MULTILINE)
    if found is None:
        raise ValueError(f"{name}.lua has no '-- {word}:' line")
    return tuple(found.group(1).split())


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
    numbers = {**dataclasses.asdict(rules), **{name: getattr(scores, name) for name in _SCORES}} if rules else {}
    parts = [f"local {field.upper()} = {value!r}" for field, value in numbers.items()]
    parts += [f"local {', '.join(_SHARED)}"]
    parts += [text(f"lib/{library}.lua") for library in _header(name, body, "use")]
    parts += ["local function run(KEYS, ARGV)"]
    parts += [f"{'' if arg in _SHARED else 'local '}{arg} = ARGV[{n}]" for n, arg in enumerate(args, 1)]
    if takes_rest:
        parts.append(f"local rest = {{}} for i = {len(args) + 1}, #ARGV do rest[#rest + 1] = ARGV[i] end")
    parts += ["start_call(KEYS[1])", body, "end"]
    return Script(name, "\n".join(parts), flags, args, takes_rest)


@cache
def compose_all(rules: QueueRules) -> Mapping[str, Script]:
    """Every script under `rules`, by name."""
    return {name: compose(name, rules) for name in NAMES}


@cache
def compose_scale() -> Mapping[str, Script]:
    """The autoscaler's scripts, by name."""
    return {name: compose(name, None) for name in SCALE_NAMES}
