"""The verbs that start something: up, gateway, worker, autoscaler."""

import argparse
import importlib.util
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.failures import OK, USAGE, Failure
from penstock.parsing import add_setting, add_shared_settings, add_verb, settings_flags

if TYPE_CHECKING:
    from dispatch.settings import Settings

_LOCAL_REDIS = "redis://127.0.0.1:6379/0"
_REDIS_PATIENCE_S = 3.0
"""Roles and Redis often start at the same moment; a wrong URL should still be told of soon."""
_MOST_WORKERS = 1000


def add_up(group: Any) -> None:
    """`penstock up`."""
    parser = add_verb(
        group,
        "up",
        run_up,
        help="run everything here: server, gateway, workers",
        example="penstock up\npenstock up --model ./my-model --workers 0..4 --port 9000\npenstock up --engine sim --ephemeral",
    )
    add_setting(parser, "--model", "worker.model", metavar="MODEL", help="`demo`, a model folder or a hub id (default demo)")
    add_setting(parser, "--name", "worker.served_name", metavar="NAME", help="the name clients use for the model")
    add_setting(parser, "--engine", "worker.engine", metavar="ENGINE", help="transformers, sim or upstream")
    add_setting(parser, "--device", "worker.device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    add_setting(
        parser, "--upstream-url", "worker.upstream_url", metavar="URL", help="upstream engine: an OpenAI-compatible server"
    )
    parser.add_argument(
        "--workers",
        type=_bounds,
        metavar="N|A..B",
        help="how many workers: N, or A to B by load (default 0..2, the first at once; with a GPU 0..1)",
    )
    add_setting(parser, "--host", "gateway.host", metavar="HOST", help="address to listen on (default 127.0.0.1)")
    add_setting(parser, "--port", "gateway.port", metavar="PORT", help="port to listen on (default 8000, or the next free one)")
    add_setting(parser, "--data", "data_dir", metavar="DIR", help="where requests are kept (default ~/.local/share/penstock)")
    parser.add_argument("--ephemeral", action="store_true", help="keep nothing: a temporary folder, no persistence")
    add_shared_settings(parser)


def add_gateway(group: Any) -> None:
    """`penstock gateway`."""
    parser = add_verb(
        group,
        "gateway",
        run_gateway,
        help="run the HTTP gateway",
        example="penstock gateway --redis redis://10.0.0.5:6379/0 --port 8000",
    )
    add_setting(parser, "--host", "gateway.host", metavar="HOST", help="address to listen on (default 127.0.0.1)")
    add_setting(parser, "--port", "gateway.port", metavar="PORT", help="port to listen on (default 8000)")
    add_shared_settings(parser)


def add_worker(group: Any) -> None:
    """`penstock worker`."""
    parser = add_verb(
        group,
        "worker",
        run_worker,
        help="run a worker on this machine's GPU or CPU",
        example=(
            "penstock worker --redis redis://10.0.0.5:6379/0 --model Qwen/Qwen3-0.6B\n"
            "penstock worker --engine upstream --upstream-url http://127.0.0.1:8080/v1 --model qwen3"
        ),
    )
    add_setting(
        parser, "--model", "worker.model", metavar="MODEL", help="`demo`, a model folder, a hub id, or the upstream's name"
    )
    add_setting(parser, "--name", "worker.served_name", metavar="NAME", help="the name clients use for the model")
    add_setting(parser, "--engine", "worker.engine", metavar="ENGINE", help="transformers, sim or upstream")
    add_setting(parser, "--device", "worker.device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    add_setting(parser, "--slots", "worker.slots", metavar="N", help="requests at once (default: the engine's own)")
    add_setting(parser, "--kv-tokens", "worker.kv_tokens", metavar="N", help="KV budget in tokens (default: what memory allows)")
    add_setting(parser, "--gpu", "worker.sim_gpu", metavar="GPU", help="sim engine: which GPU to play")
    add_setting(parser, "--speed", "worker.sim_speed", metavar="X", help="sim engine: times faster than that GPU; inf: instant")
    add_setting(parser, "--upstream-url", "worker.upstream_url", metavar="URL", help="upstream engine: its base URL, with /v1")
    add_shared_settings(parser)


def add_autoscaler(group: Any) -> None:
    """`penstock autoscaler`."""
    parser = add_verb(
        group,
        "autoscaler",
        run_autoscaler,
        help="run the autoscaler: as many workers as the queue needs",
        example="penstock autoscaler --redis redis://10.0.0.5:6379/0\npenstock autoscaler --dry-run --launcher agents",
    )
    add_setting(parser, "--launcher", "autoscaler.launcher", metavar="NAME", help="agents, docker, kubernetes or exec")
    add_setting(parser, "--group", "autoscaler.group", metavar="NAME", help="autoscalers of one group take turns (default main)")
    add_setting(parser, "--port", "autoscaler.port", metavar="PORT", help="port of /livez, /readyz and /metrics (default none)")
    parser.add_argument(
        "--dry-run",
        dest="setting:autoscaler.dry_run",
        action="store_const",
        const=True,
        help="decide and record, and change nothing",
    )
    add_shared_settings(parser)


def run_up(args: argparse.Namespace) -> int:
    """Start all and watch over it until Ctrl-C."""
    from dispatch.configuration import load

    loaded = load(settings_flags(args))
    _refuse_missing_engine(loaded.settings)
    _refuse_missing_folder(loaded.settings)
    _refuse_bad_name(loaded.settings)
    if loaded.settings.gateway.host not in ("127.0.0.1", "localhost"):
        from gateway.auth import check_bind  # costs half a second, so only where it may say no

        check_bind(loaded.settings)
    from penstock.household import Wanted
    from penstock.up import run

    wished = loaded.origins["gateway.port"].layer != "default"
    return run(Wanted(loaded.settings, args.workers, args.ephemeral, wished))


def run_gateway(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    settings = role_settings(args, "gateway")
    from gateway.serve import serve

    return int(serve(settings) or OK)


def run_worker(args: argparse.Namespace) -> int:
    """Work until SIGTERM or Ctrl-C."""
    settings = role_settings(args, "worker")
    from worker.serve import run

    return int(run(settings) or OK)


def run_autoscaler(args: argparse.Namespace) -> int:
    """Scale until SIGTERM or Ctrl-C."""
    settings = role_settings(args, "autoscaler")
    from autoscaler.daemon import serve

    return int(serve(settings) or OK)


def role_settings(args: argparse.Namespace, service: str) -> "Settings":
    """A role's settings from flags and all around it, once it logs, dies with its parent and Redis answers."""
    from dispatch.processes import die_with_parent

    # Nothing may outlive a killed `up`, a drain of half a minute included.
    die_with_parent(signal.SIGKILL)
    from dispatch.configuration import load_settings
    from dispatch.logs import configure

    settings = load_settings(settings_flags(args))
    if not settings.redis.url:
        settings = load_settings({**settings_flags(args), "redis.url": _LOCAL_REDIS})
    configure(settings, service)
    if service == "worker":
        _refuse_missing_engine(settings)
        _refuse_missing_folder(settings)
        _refuse_bad_name(settings)
    import asyncio

    from dispatch.checks import wait_until_ready

    asyncio.run(wait_until_ready(settings.redis.url or _LOCAL_REDIS, _REDIS_PATIENCE_S, settings.redis.durability))
    return settings


def _refuse_missing_engine(settings: "Settings") -> None:
    lacking = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if settings.worker.engine == "transformers" and lacking:
        to_do = 'pip install "penstock[transformers]", or choose --engine sim or --engine upstream'
        raise Failure("The transformers engine is not installed", f"{' and '.join(lacking)} cannot be found", to_do, USAGE)


def _refuse_missing_folder(settings: "Settings") -> None:
    """A path that is not there is told before anything starts; what looks like a hub id is left to the engine."""
    worker = settings.worker
    looks_like_path = worker.model.startswith((".", "/", "~")) or worker.model.endswith("/")
    if worker.engine != "transformers" or not looks_like_path:
        return
    folder = Path(worker.model).expanduser()
    if not (folder / "config.json").is_file():
        why = "it has no config.json" if folder.is_dir() else "there is no such folder"
        to_do = "Name a folder made by save_pretrained (config.json, *.safetensors, tokenizer.json), a hub id, or `demo`"
        raise Failure(f"The model folder {folder} cannot be used", why, to_do, USAGE)


def _refuse_bad_name(settings: "Settings") -> None:
    """A name that no client could use is told before anything starts; the engine, which knows best, would refuse it late."""
    from penstock.console import model_name
    from worker.engines.naming import served_name

    served_name(settings.worker, model_name(settings))


def _bounds(text: str) -> tuple[int, int]:
    """`N` or `A..B`."""
    least, dots, most = text.partition("..")
    try:
        bounds = int(least), int(most if dots else least)
    except ValueError:
        bounds = -1, -1
    if not 0 <= bounds[0] <= bounds[1] <= _MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {_MOST_WORKERS}, nor two like 0..4")
    return bounds
