"""The parts of a script that are made of its header, not written: how its words come in, its reader of records, replies. Pure.

Never here: what a script does (the .lua files), putting it together and calling it (__init__.py).
"""

import re
from collections.abc import Collection

from dispatch.records import ROWS

SHARED = ("now", "salt")
"""Arguments that the library files read, too: they stand above them all."""

_WORDS = {name: dict.fromkeys(listed, "%S+") | ({"tenant": ".*"} if "tenant" in listed else {}) for name, listed in ROWS.items()}
"""Fields of a request that are words in a row, and what each looks like."""


def words() -> list[str]:
    """words_of_asked, words_of_what and words_of_grant: all words of such a field, nothing where it is none."""
    return [
        f"local function words_of_{name}(field) return string.match(field, {_pattern(name, listed)!r}) end"
        for name, listed in _WORDS.items()
    ]


def _pattern(name: str, wanted: Collection[str]) -> str:
    """What such a field looks like whole, the wanted words to be taken."""
    return f"^{' '.join(f'({like})' if word in wanted else like for word, like in _WORDS[name].items())}$"


def run_once(args: tuple[str, ...], *, takes_rest: bool) -> list[str]:
    """Calls `one` with what ARGV holds."""
    given = [f"ARGV[{n}]" for n, arg in enumerate(args, 1) if arg not in SHARED]
    lines = ["local function run(KEYS, ARGV)"]
    lines += [f"{arg} = ARGV[{n}]" for n, arg in enumerate(args, 1) if arg in SHARED]
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


def reader(fields: tuple[str, ...]) -> list[str]:
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
        wanted = {word.removesuffix("#"): word for word in field.partition(":")[2].split(",")}
        named = [word for word in _WORDS[name] if word in wanted]
        lines.append(f"local {', '.join(named)} = string.match(f[{n}] or '', {_pattern(name, named)!r})")
        made |= {word: _value(wanted[word], word) for word in named}
    made["chain"] = f"{made['chain'].removesuffix(' or nil')} or chain_of(id)"
    return [*lines, f"return {{id = id, {', '.join(f'{name} = {value}' for name, value in made.items())}}}", "end"]


def _value(field: str, found: str) -> str:
    return f"tonumber({found}) or 0" if field.endswith("#") else f"{found} or nil"


def run_each(each: tuple[str, ...], *, looks_ahead: bool) -> list[str]:
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
