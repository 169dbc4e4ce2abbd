"""An argument parser that suggests what was meant, and the flags that several verbs share.

Never here: a verb's own flags (commands/).
"""

import argparse
import difflib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from penstock.failures import USAGE, Failure
from penstock.output import seconds_of

DEFAULT_SERVER = "http://127.0.0.1:8000"

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors say what was meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """A usage error as a `Failure`; `main` prints it."""
        raise Failure(_what(message), _why(message), self._hint(message), USAGE)

    def refuse_unknown(self, left: list[str]) -> NoReturn:
        """What `parse_known_args` left over."""
        word = next((w for w in left if w.startswith("-")), left[0])
        near = difflib.get_close_matches(word.partition("=")[0], self._options(), n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise Failure(f"`{self.prog}` has no {_kind(word)} {word}", "", f"{hint}`{self.prog} --help` lists all", USAGE)

    def _options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def _hint(self, message: str) -> str:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            known = [word.strip().strip("'") for word in choice[2].split(",")]
            near = difflib.get_close_matches(choice[1], known, n=1, cutoff=0.5)
            if near:
                return f"Did you mean {near[0]}?"
        return f"`{self.prog} --help` shows an example"


def add_verb(group: Any, name: str, run: Run, *, help: str, example: str, description: str = "") -> Parser:
    """A verb with its example in its help."""
    text = (description or f"{help[0].upper()}{help[1:]}.") + "\n\nexample:\n  " + "\n  ".join(example.splitlines())
    parser: Parser = group.add_parser(name, help=help, description=text)
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_client_flags(parser: argparse.ArgumentParser, *, output: bool = True) -> None:
    """Where the gateway is, the key, and how to print."""
    parser.add_argument("--server", metavar="URL", help=f"the gateway (PENSTOCK_SERVER; default {DEFAULT_SERVER})")
    parser.add_argument("--api-key", metavar="KEY", help="the key to use (PENSTOCK_API_KEY)")
    if output:
        parser.add_argument(
            "-o", "--output", choices=["table", "json", "jsonl"], default="table", help="how to print (default table)"
        )


def add_setting(parser: argparse.ArgumentParser, flag: str, key: str, *, metavar: str, help: str) -> None:
    """A flag that is a setting: its text is judged by the settings, like a variable of the environment."""
    parser.add_argument(flag, dest=f"setting:{key}", metavar=metavar, help=help)


def add_shared_settings(parser: argparse.ArgumentParser) -> None:
    """Settings every process takes."""
    add_setting(parser, "--redis", "redis.url", metavar="URL", help="redis://, rediss://, unix:// or redis+sentinel:// URL")
    add_setting(parser, "--log-level", "log.level", metavar="LEVEL", help="debug, info, warning or error")


def settings_flags(args: argparse.Namespace) -> Mapping[str, Any]:
    """The settings given as flags, by dotted key."""
    return {name.removeprefix("setting:"): value for name, value in vars(args).items() if name.startswith("setting:")}


def server_of(args: argparse.Namespace) -> str:
    """The gateway's base URL."""
    return str(args.server or os.environ.get("PENSTOCK_SERVER") or DEFAULT_SERVER).rstrip("/")


def api_key_of(args: argparse.Namespace) -> str:
    """The key to show it, or nothing."""
    return str(args.api_key or os.environ.get("PENSTOCK_API_KEY") or "")


def span_of(text: str) -> float:
    """An argument's `type`: a span of time in seconds."""
    try:
        value = seconds_of(text)
    except ValueError:
        value = -1.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no span of time like 30s, 5m or 1h")
    return value


def _kind(word: str) -> str:
    return "flag" if word.startswith("-") else "argument"


def _what(message: str) -> str:
    choice = re.search(r"argument ([^:]*): invalid choice: '([^']*)'", message)
    if choice:
        kind = "command" if choice[1].startswith(("COMMAND", "{")) else f"value of {choice[1]}"
        return f"no {kind} {choice[2]!r}"
    return message


def _why(message: str) -> str:
    choice = re.search(r"invalid choice: .* \(choose from (.*)\)", message)
    return f"it is one of {choice[1].replace(chr(39), '')}" if choice else ""
