"""What `up` says on the terminal: what runs where, what to try, what happened since.

Never here: how it is found out (household.py).
"""

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from dispatch.settings import Settings
from penstock.failures import Failure

_PROMPT = "Tell me of the sea"


def title() -> None:
    """The first line."""
    _say(f"penstock {version('penstock')}\n")


def part(name: str, text: str) -> None:
    """One thing that runs, and where."""
    _say(f"  {name:<10} {text}")


def event(text: str) -> None:
    """Something that happened later."""
    _say(f"{time.strftime('%H:%M:%S')}  {text}")


def try_this(settings: Settings, url: str, logs: Path) -> None:
    """Two commands to try."""
    model = model_name(settings)
    body = f'{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"{_PROMPT}"}}]}}'
    key = ' -H "authorization: Bearer $PENSTOCK_API_KEY"' if settings.api_keys else ""
    server = "" if url == "http://127.0.0.1:8000" else f" --server {url}"
    chosen = "" if model == "demo" else f" --model {shlex.quote(model)}"
    part("logs", tilde(logs))
    _say("\nTry, in another shell:\n")
    _say(f"  curl -N {url}/v1/chat/completions -H 'content-type: application/json'{key} \\\n    -d {shlex.quote(body)}\n")
    _say(f'  {_program()} chat "{_PROMPT}"{chosen}{server}\n')
    _say("Ctrl-C stops everything.\n")


def last_words(what: str, lines: Sequence[str], log: Path, *, why: str = "") -> Failure:
    """The failure of a child: it ends with three lines of its own; anything else is shown as it stands."""
    said = [line for line in lines if line.startswith(("penstock: ", "  why: ", "  do:  "))]
    told = " ".join(line.partition(": ")[2].strip() for line in said if not line.startswith("  do:")) or " | ".join(lines[-3:])
    to_do = next((line.partition(":")[2].strip() for line in said if line.startswith("  do:")), "")
    return Failure(what, why or told, f"{to_do} Its log: {tilde(log)}".strip())


def model_name(settings: Settings) -> str:
    """The name clients use, as the settings describe it."""
    worker = settings.worker
    if worker.served_name:
        return worker.served_name
    folder = Path(worker.model).expanduser()
    return folder.resolve().name if worker.engine == "transformers" and folder.is_dir() else worker.model


def tilde(path: Path) -> str:
    """A path with the home folder written short."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) and path != home else str(path)


def _program() -> str:
    """How this program can be called again from here."""
    called = Path(sys.argv[0]).absolute()
    found = shutil.which("penstock")
    if found and Path(found).absolute() == called:
        return "penstock"
    if called.name != "penstock":
        return "python -m penstock"
    return str(called.relative_to(Path.cwd())) if called.is_relative_to(Path.cwd()) else str(called)


def _say(text: str) -> None:
    print(text, flush=True)
