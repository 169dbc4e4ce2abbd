"""`penstock simulate --autoscale`."""

import json
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.simulator.trace import made_up, write_trace


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    write_trace(path, made_up(150, seed=4))
    return path


def simulate(trace: Path, *more: str) -> int:
    return main(["simulate", "--trace", str(trace), "--fleet", "A100*4", "--strategy", "pull", "--autoscale", *more])


def test_each_rule_has_a_row(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(trace, "--rules", "decide,decide:60s,ceil:8:60s,keda:8", "--target", "30s", "-o", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["rule"] for row in rows] == ["decide", "decide:60s", "ceil:8:60s", "keda:8"]
    assert all(row["gpu_s"] > 0 and 0 <= row["attained"] <= 1 and 1 <= row["most_ready"] <= 4 for row in rows)


def test_bounds_and_cold_start_are_kept(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(trace, "--workers", "2..2", "--cold-start", "7s", "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["most_ready"], row["starts"], row["turns"]) == (2, 2, 0)
    assert 5.0 <= row["wait_max_s"] <= 7.0
    assert simulate(trace) == 0
    assert "GPU-SECONDS" in capsys.readouterr().out


def test_it_draws(trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert simulate(trace, "--plot", str(tmp_path / "out.svg"), "--rules", "decide,ceil:8") == 0
    text = (tmp_path / "out.svg").read_text()
    assert "<svg" in text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rules", "best"], "--rules does not understand 'best'"),
        (["--rules", "ceil:0"], "--rules does not understand 'ceil:0'"),
        (["--workers", "3..9"], "--workers does not understand '3..9'"),
        (["--policy", "latency"], "latency is not simulated"),
        (["--policy", "magic"], "no policy 'magic'"),
        (["--fleet", "A100,A10"], "a pool has one kind of GPU"),
        (["--strategy", "all"], "--autoscale needs one strategy"),
        (["--kill", "every 60s"], "do not go with --autoscale"),
    ],
)
def test_what_it_refuses(trace: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(trace, *flags) == 2
    assert says in capsys.readouterr().err
