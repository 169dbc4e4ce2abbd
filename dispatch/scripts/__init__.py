"""The scripts: one .lua file a transition, put together from `lib/`, and called by name. Only `dispatch/queue.py` calls them,
`dispatch/outbox.py` those of webhooks, and `dispatch/scale_store.py` the autoscaler's.

A script states its contract above itself: `-- use:` names the library files it stands on, `-- args:` its arguments. With
`-- each:` one call takes several requests, with so many words each, and replies for each (docs/decisions/0027).
Named Lua locals are made from all, so no body says ARGV[7]; the numbers of rules and scores stand as names in capitals.
`-- reads:` names the fields that `read_these` has of a request (`#`: as a number; `asked:` and `grant:` with those of their words
that are wanted). What stands above a line `-- one:` is made once; its `ahead(ids)` is told of all requests of a call that has
several, to look up in one command what each will ask for.
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
from dispatch.records import ASKED, GRANT
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

_WORDS = {"asked": dict.fromkeys(ASKED, "%S+") | {"tenant": ".*"}, "grant": dict.fromkeys(GRANT, "%S+")}
"""Fields of a request that are words in a row, and what each looks like; `lib/ground.lua` takes them apart whole."""

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


def _run_once(args: tuple[str, ...], takes_rest: bool) -> list[str]:
    """Calls `one` with what ARGV holds."""
    given = [f"ARGV[{n}]" for n, arg in enumerate(args, 1) if arg not in _SHARED]
    lines = ["local function run(KEYS, ARGV)"]
    lines += [f"{arg} = ARGV[{n}]" for n, arg in enumerate(args, 1) if arg in _SHARED]
    if takes_rest:
        lines.append(f"local rest = {{}} for i = {len(args) + 1}, #ARGV do rest[#rest + 1] = ARGV[i] end")
        given.append("rest")
    lines += ["share(true)", "start_call(KEYS[1])", f"local done, reply = pcall({', '.join(['one', *given])})", "end_call()"]
    return [
        *lines,
        "if not done then error(reply, 0) end",
        "if failures[1] then error(failures[1], 0) end",
        "return reply",
        "end",
    ]


def _reader(fields: tuple[str, ...]) -> list[str]:
    """`read_these`: these fields of a request alone, as a table that is made whole: one that grows is made again and again."""
    names = [re.split("[#:]", field)[0] for field in fields]
    lines = [
        "local function read_these(id)",
        f"local f = redis.pcall('HMGET', k_request(id), {', '.join(map(repr, names))})",
        "if f.err or not f[1] then return nil end",
    ]
    if "asked" in names:
        lines.append(f"if not f[{names.index('asked') + 1}] then return read_request(id) end")  # of version 1
    made: dict[str, str] = {}
    for n, (name, field) in enumerate(zip(names, fields, strict=True), 1):
        if name not in _WORDS:
            # A field of a word's name says what became of it since.
            made[name] = f"f[{n}] or {made[name]}" if name in made else _value(field, f"f[{n}]")
            continue
        words = {word.removesuffix("#"): word for word in field.partition(":")[2].split(",")}
        pattern = " ".join((f"({like})" if word in words else like) for word, like in _WORDS[name].items())
        named = [word for word in _WORDS[name] if word in words]
        lines.append(f"local {', '.join(named)} = string.match(f[{n}] or '', '^{pattern[: pattern.rindex(')') + 1]}')")
        made |= {word: _value(words[word], word) for word in named}
    made["chain"] = f"{made['chain'].removesuffix(' or nil')} or chain_of(id)"
    return [*lines, f"return {{id = id, {', '.join(f'{name} = {value}' for name, value in made.items())}}}", "end"]


def _value(field: str, found: str) -> str:
    return f"tonumber({found}) or 0" if field.endswith("#") else f"{found} or nil"


def _run_each(each: tuple[str, ...], looks_ahead: bool) -> list[str]:
    """Calls `one` for one request after the other; what goes wrong with one is its reply alone."""
    salted = each[0] == "salt"
    ahead = [
        f"if #ARGV > {len(each) + 1} then",
        "local ids = {}",
        f"for at = {2 + each.index('id')}, #ARGV, {len(each)} do ids[#ids + 1] = ARGV[at] end",
        "ahead(ids)",
        "end",
    ]
    return [
        "local function run(KEYS, ARGV)",
        "now = ARGV[1]",
        f"share(#ARGV > {len(each) + 1})",
        "start_call(KEYS[1])",
        *(ahead if looks_ahead else ()),
        "local replies = {}",
        f"for at = 2, #ARGV, {len(each)} do",
        f"turn = (at - 2) / {len(each)} + 1",
        "salt = ARGV[at]" if salted else "",
        f"local done, reply = pcall(one, unpack(ARGV, at + {int(salted)}, at + {len(each) - 1}))",
        "if reply == nil or not done and type(reply) ~= 'table' then reply = {err = 'ERR ' .. tostring(reply)} end",
        "replies[turn] = reply",
        "end",
        "end_call()",
        "for failed, why in pairs(failures) do replies[failed] = why end",
        "return replies",
        "end",
    ]


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
    parts = [f"local {', '.join(_SHARED)}"]
    parts += [text(f"lib/{library}.lua") for library in _header(name, body, "use")]
    if "\n-- reads:" in body:
        parts += _reader(_header(name, body, "reads"))
    once, marked, body = body.rpartition("\n-- one:\n")
    own = [arg for arg in (*args, *each) if arg not in _SHARED] + ["rest"] * takes_rest
    parts += [once, f"local function one({', '.join(own)})", body, "end"]
    parts += _run_each(each, bool(marked)) if each else _run_once(args, takes_rest)
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
