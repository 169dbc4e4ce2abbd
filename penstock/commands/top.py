"""`penstock top`: queues, workers and pools on one screen that draws itself anew. Never here: what it looks like (screen/)."""

import argparse
import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.failures import OK, Failure
from penstock.parsing import add_client_flags, add_verb, api_key_of, server_of, span_of

if TYPE_CHECKING:
    from penstock.client import Gateway
    from penstock.screen.looks import Look, Looks

_PLAIN_WIDTH = 240
_OPEN, _CLOSE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


def add_top(group: Any) -> None:
    """`penstock top`."""
    parser = add_verb(
        group,
        "top",
        _run,
        help="live screen: queues, workers, GPUs, decisions",
        example="penstock top\npenstock top -i 2\npenstock top --once",
        description=(
            "Queues, workers and pools on one screen. Keys: q quits, s sorts workers, p holds the screen.\n"
            "Rates are over the last 10 s, p95 TTFT over the last minute as this gateway saw it.\n"
            "Without a terminal, or with --once, it is printed once: it looks twice, an interval apart, for the rates."
        ),
    )
    parser.add_argument("--once", action="store_true", help="print it once and end")
    parser.add_argument("-i", "--interval", type=span_of, default=1.0, metavar="SECONDS", help="time between looks (default 1s)")
    add_client_flags(parser, output=False)


def _run(args: argparse.Namespace) -> int:
    from penstock.client import Gateway
    from penstock.screen.looks import Looks

    looks = Looks()
    with Gateway(server_of(args), api_key_of(args)) as gateway:
        looks.add(_look(gateway))
        if args.once or not (sys.stdout.isatty() and sys.stdin.isatty()):
            time.sleep(args.interval)
            looks.add(_look(gateway))
            _print_once(gateway, looks)
            return OK
        with _screen():
            _live(gateway, looks, args.interval)
    return OK


def _look(gateway: "Gateway") -> "Look":
    """Ask for everything."""
    from penstock.screen.looks import Look

    queues, workers, pools = (gateway.call("GET", f"/v1/{page}")["data"] for page in ("queues", "workers", "pools"))
    return Look.of(time.monotonic(), queues, workers, pools, gateway.text("/metrics"))


def _print_once(gateway: "Gateway", looks: "Looks") -> None:
    from penstock.screen.top import Options, drawn

    tty = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if tty else _PLAIN_WIDTH
    options = Options(gateway.server, time.strftime("%H:%M:%S"), width, colour=tty and not os.environ.get("NO_COLOR"))
    print("\n".join(drawn(looks, options)))


@dataclass(slots=True)
class _Held:
    """What keys changed."""

    order: int = 0
    paused: bool = False
    quit: bool = False

    def press(self, key: str) -> None:
        match key:
            case "q" | "Q" | "\x04":
                self.quit = True
            case "s":
                self.order += 1
            case "p" | " ":
                self.paused = not self.paused


def _live(gateway: "Gateway", looks: "Looks", interval_s: float) -> None:
    """Draw, wait for a key or the next look, until q. A gateway that goes away is told, and asked again."""
    from penstock.screen.top import Options, Order, drawn

    held, stale, orders = _Held(), "", list(Order)
    next_s = time.monotonic() + interval_s
    while not held.quit:
        terminal = os.get_terminal_size(sys.stdout.fileno())  # COLUMNS of the environment would outlive a resize
        options = Options(
            server=gateway.server,
            clock=time.strftime("%H:%M:%S"),
            width=terminal.columns,
            colour=not os.environ.get("NO_COLOR"),
            order=orders[held.order % len(orders)],
            paused=held.paused,
            stale=stale,
            keys=True,
        )
        lines = drawn(looks, options)[: terminal.lines - 1]
        sys.stdout.write(_HOME + "".join(f"{line}{_REST_OF_LINE}\n" for line in lines) + _REST)
        sys.stdout.flush()
        if select.select([sys.stdin], [], [], max(0.0, next_s - time.monotonic()))[0]:
            pressed = os.read(sys.stdin.fileno(), 64).decode("utf-8", "ignore")
            held.quit = not pressed  # the terminal is gone
            for key in pressed:
                held.press(key)
            continue
        next_s = time.monotonic() + interval_s
        if not held.paused:
            try:
                looks.add(_look(gateway))
                stale = ""
            except Failure as failure:
                stale = stale or f"since {time.strftime('%H:%M:%S')}: {failure.what}: {failure.why}"


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """A screen of its own, and keys as they are pressed; the terminal is as before afterwards, whatever happens."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    sys.stdout.write(_OPEN)
    try:
        yield
    finally:
        sys.stdout.write(_CLOSE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
