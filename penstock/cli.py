"""The command line: the verbs, and what their ends mean to the shell.

Nothing heavy is imported here or at the top of a command: `--help` answers in a blink.
"""

import os
import sys
from collections.abc import Sequence

from dispatch.errors import PenstockError
from penstock.commands import COMMANDS
from penstock.failures import INTERRUPTED, OK, Failure, failure_of
from penstock.parsing import Parser

_EPILOG = """\
example:
  penstock up                                      everything on this machine, with a demo model
  penstock chat "Tell me of the sea"               talk to it from another shell
  penstock COMMAND --help                          every command has an example

exit codes: 0 ok, 1 the request failed, 2 usage, 3 cannot reach the server, 4 timeout, 130 Ctrl-C
"""


def build_parser() -> Parser:
    """All verbs."""
    parser = Parser(
        prog="penstock",
        description="Serverless-style GPU inference on your own machines: HTTP in, Redis between, tokens out.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    group = parser.add_subparsers(metavar="COMMAND", dest="command", parser_class=Parser)
    for add in COMMANDS:
        add(group)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parser = build_parser()
    try:
        args, left = parser.parse_known_args(arguments)
        if args.version:
            from importlib.metadata import version

            print(f"penstock {version('penstock')}")
            return OK
        if left:
            getattr(args, "parser", parser).refuse_unknown(left)
        if not args.command:
            parser.print_help()
            return OK
        return int(args.run(args))
    except (Failure, PenstockError) as error:
        failure = failure_of(error) if isinstance(error, PenstockError) else error
        print(failure, file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has what it wants; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
