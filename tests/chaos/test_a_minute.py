"""A minute of chaos, for real: everything is struck, and every promise is kept."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED = 7


@pytest.mark.timeout(400)
def test_a_minute_of_chaos(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "chaos",
        "--seed",
        str(SEED),
        "--minutes",
        "1",
        "--transformers",
        "1",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=380, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
