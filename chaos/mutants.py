"""`python -m chaos.mutants`: plant each bug in a copy of the tree, hunt it with small runs, print the score.

The harness itself is the copy's, so it speaks the mutated laws as the roles do. The tree as it is must pass (the control).
Never here: the bugs (planted.py), the runs.
"""

import argparse
import asyncio
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from chaos.planted import MUTANTS, Mutant

_ROOT = Path(__file__).resolve().parent.parent
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "*_cache", ".*_cache", "__pycache__", "bench", "docs", ".hypothesis", "build", "dist"
)
_RUN_S = 150.0
UNREADABLE = "I11: Redis could not be read in the end"
"""Says that something is badly wrong, and nothing of what."""
_LEAST_REQUESTS = 20
"""A run with fewer has shown nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one hunt. `found`: a promise was broken that this bug breaks. `otherwise`: only others were."""

    mutant: Mutant
    found: bool
    seeds: int
    seconds: float
    reason: str
    otherwise: str = ""
    died: str = ""
    """What a run said that ended without a judgement."""


def plant(mutant: Mutant, root: Path) -> None:
    """Make the edit. Raises ValueError where the text to be replaced is not there."""
    path = root / mutant.file
    text = path.read_text(encoding="utf-8")
    if mutant.old not in text:
        raise ValueError(f"{mutant.name}: {mutant.file} has no {mutant.old!r}")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


async def hunt(mutant: Mutant, tree: Path, seeds: range, seconds: float) -> Verdict:
    """Run seed after seed until one finds it, in a copy of `tree`."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="penstock-mutant-") as folder:
        root = Path(folder) / "tree"
        await asyncio.to_thread(shutil.copytree, tree, root)
        if mutant.old:
            plant(mutant, root)
        otherwise, died = "", ""
        for n, seed in enumerate(seeds, 1):
            code, said = await _run(root, seed, seconds, mutant, Path(folder) / f"run-{seed}")
            judged = judgement(code, said)
            if judged is None:
                died = "a run ended without a judgement: " + (said.strip().splitlines() or ["nothing was said"])[-1][:200]
                continue
            found = hit(mutant, judged)
            if found:
                return Verdict(mutant, True, n, time.monotonic() - started, found)
            otherwise = otherwise or "; ".join(judged)
        return Verdict(mutant, False, len(seeds), time.monotonic() - started, "not found", otherwise, died)


def hit(mutant: Mutant, judged: list[str]) -> str:
    """The first violation of a promise that this bug breaks, or ""."""
    return next((v for v in judged if v.partition(":")[0] in mutant.expects and v != UNREADABLE), "")


def judgement(code: int, said: str) -> list[str] | None:
    """The violations that a run told of, each kind once. None: it died, or had nothing to judge."""
    violations: list[str] = re.findall(r"^((?:I|J|S)\d+: .*)$", said, re.MULTILINE)
    requests = re.search(r"^\| requests \| (\d+)", said, re.MULTILINE)
    whole = "history: " in said and requests is not None and int(requests[1]) >= _LEAST_REQUESTS
    if code not in (0, 1) or (code == 1) is not bool(violations):
        return None
    return violations if whole or violations else None


async def hunt_all(mutants: list[Mutant], tree: Path, seeds: range, seconds: float, abreast: int) -> list[Verdict]:
    """Every hunt, a few at a time; each verdict is told as it comes."""
    places = asyncio.Semaphore(abreast)

    async def one(mutant: Mutant) -> Verdict:
        async with places:
            verdict = await hunt(mutant, tree, seeds, seconds)
            print(as_line(verdict), flush=True)
            return verdict

    return await asyncio.gather(*(one(mutant) for mutant in mutants))


def as_line(v: Verdict) -> str:
    """One row of the score."""
    wanted = ", ".join(sorted(v.mutant.expects))
    if v.found:
        how = f"found by seed {v.seeds} of the hunt in {v.seconds:.0f} s"
    else:
        how = f"NOT FOUND in {v.seeds} seeds" + (f", found otherwise: {v.otherwise}" if v.otherwise else "")
    return f"| {v.mutant.name} | {wanted} | {how} | {v.reason if v.found else v.died or v.reason} |"


async def _run(root: Path, seed: int, seconds: float, mutant: Mutant, out: Path) -> tuple[int, str]:
    command = ["-m", "chaos", "--seed", str(seed), "--minutes", f"{seconds / 60:.3f}", "--transformers", "0"]
    command += ["--sim", "1" if mutant.scaled else "3"]
    command += ["--clients", "16", "--gap", "1.0", "--settle", "20", "--out", str(out)]
    if mutant.scaled:
        command += ["--scaled"]
    command += ["--poison", f"{mutant.poison:g}"] + (["--only", mutant.only] if mutant.only else [])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), _RUN_S)
    except TimeoutError:
        process.kill()  # its roles die with it
        await process.wait()
        return -1, "the run did not end"
    return process.returncode or 0, said.decode("utf-8", "replace")


def main() -> int:
    """Hunt, and print the score; 0 when every bug was found and the control found nothing."""
    parser = argparse.ArgumentParser(prog="python -m chaos.mutants")
    parser.add_argument("--seeds", type=int, default=4, help="runs a bug may take to be found")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of one run's storm")
    parser.add_argument("--abreast", type=int, default=1, help="hunts at a time")
    parser.add_argument("--control", type=int, default=2, help="runs of the tree as it is; they must find nothing")
    parser.add_argument("--match", default="", help="only bugs whose name this pattern finds")
    args = parser.parse_args()
    mutants = [m for m in MUTANTS if re.search(args.match, m.name)]
    with tempfile.TemporaryDirectory(prefix="penstock-mutants-") as folder:
        # One copy for all: what is being edited meanwhile changes nothing.
        tree = Path(folder) / "tree"
        shutil.copytree(_ROOT, tree, ignore=_LEFT_OUT)
        control = asyncio.run(hunt(Mutant("the tree as it is", "", "", ""), tree, range(1, args.control + 1), args.seconds))
        good = not control.otherwise and not control.died
        said = control.otherwise or control.died or ("no violation" if args.control else "not run")
        print(f"control, the tree as it is: {said}", flush=True)
        verdicts = asyncio.run(hunt_all(mutants, tree, range(1, args.seeds + 1), args.seconds, args.abreast))
    otherwise = sum(not v.found and bool(v.otherwise) for v in verdicts)
    print(f"\nplanted bugs found: {sum(v.found for v in verdicts)} of {len(verdicts)}; found otherwise only: {otherwise}")
    return 0 if good and all(v.found for v in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
