"""`penstock simulate` as typed: what it prints, and what it refuses."""

import json
from pathlib import Path

import pytest

from dispatch.scores import Strategy
from penstock.cli import main
from penstock.simulator.trace import made_up, write_trace

ROW = [
    "strategy",
    "e2e_mean_s",
    "e2e_p95_s",
    "e2e_p99_s",
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "tokens_per_s",
    "share",
    "goodput",
]


@pytest.fixture
def trace_file(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    write_trace(path, made_up(120, seed=4))
    return str(path)


def simulate(trace_file: str, *arguments: str) -> int:
    return main(["simulate", "--trace", trace_file, "--fleet", "H200,A10*2", *arguments])


def refused(capsys: pytest.CaptureFixture[str], trace_file: str, *arguments: str) -> str:
    assert simulate(trace_file, *arguments) == 2
    said = capsys.readouterr()
    assert not said.out
    assert "do: " in said.err
    return said.err


def test_all_strategies_as_json(trace_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(trace_file, "--strategy", "all", "--load", "0.8", "-o", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["strategy"] for row in rows] == ["oracle", "greedy", *map(str, Strategy)]
    for row in rows:
        assert list(row) == ROW
        assert list(row["share"]) == ["H200-1", "A10-1", "A10-2"]
        assert sum(row["share"].values()) == pytest.approx(1.0, abs=1e-5)
        assert 0 < row["ttft_p50_s"] <= row["ttft_p95_s"] <= row["ttft_p99_s"] <= row["e2e_p99_s"]
        assert row["e2e_mean_s"] > 0
        assert row["e2e_p95_s"] <= row["e2e_p99_s"]
        assert row["tokens_per_s"] > 0
        assert 0 <= row["goodput"] <= 1


def test_a_table_and_json_lines(trace_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(trace_file, "--strategy", "pull,oracle") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "STRATEGY"
    assert [line.split()[0] for line in lines] == ["pull", "oracle"]
    assert simulate(trace_file, "--strategy", "pull,oracle", "-o", "jsonl") == 0
    assert [json.loads(line)["strategy"] for line in capsys.readouterr().out.splitlines()] == ["pull", "oracle"]


def test_load_shortens_the_trace_and_raises_the_rate(trace_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    rates = []
    for load in ("0.1", "0.8"):
        simulate(trace_file, "--strategy", "pull", "--load", load, "--requests", "400", "-o", "json")
        rates.append(json.loads(capsys.readouterr().out)[0]["tokens_per_s"])
    assert rates[1] > 3 * rates[0]


def test_goodput_counts_what_was_promised(trace_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for slo in ("ttft=1h,tpot=1h", "ttft=500ms,tpot=20ms", "ttft=1ms"):
        simulate(trace_file, "--strategy", "pull", "--load", "0.8", "--slo", slo, "-o", "json")
        found.append(json.loads(capsys.readouterr().out)[0]["goodput"])
    assert found[0] == 1.0 > found[1] > found[2] == 0.0


@pytest.mark.parametrize(
    ("flag", "text"), [("--kill", "every 6s"), ("--kill", "H200-1@1s+3s"), ("--freeze", "A10-1@2s,every 5s")]
)
def test_troubles_cost_time_and_nothing_else(flag: str, text: str, trace_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    means = []
    for arguments in ([], [flag, text]):
        assert simulate(trace_file, "--strategy", "pull", "--load", "0.6", "-o", "json", *arguments) == 0
        means.append(json.loads(capsys.readouterr().out)[0]["e2e_mean_s"])
    assert means[1] > means[0]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plot_is_drawn(ending: str, trace_file: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{ending}"
    assert simulate(trace_file, "--strategy", "pull,oracle", "--plot", str(path)) == 0
    head = path.read_bytes()[:200]
    assert head.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    if ending == "svg":
        assert path.read_text().count("time to first token") == 1


def test_without_matplotlib_it_says_what_to_install(
    trace_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert "pip install 'penstock[plot]'" in refused(capsys, trace_file, "--plot", str(tmp_path / "out.png"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strategy", "pul"], "no strategy 'pul'"),
        (["--load", "0"], "no share of the capacity"),
        (["--load", "lots"], "no share of the capacity"),
        (["--burst", "soon"], "no span of time"),
        (["--requests", "-3"], "no number of requests"),
        (["--kill", "every"], "names no time"),
        (["--kill", "every 0s"], "longer than nothing"),
        (["--kill", "B300-1@5s"], "no worker B300-1"),
        (["--freeze", "A10-1@later"], "no span of time"),
        (["--slo", "ttfb=2s"], "ttfb=2s"),
        (["--plot", "out.gif"], "neither .png nor .svg"),
        (["--plot", "/no/such/folder/out.png"], "no folder"),
        (["--fleet", "H200,B300"], "'B300' is no GPU"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], said: str, trace_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, trace_file, *arguments)


def test_a_request_that_fits_no_worker_is_told_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2000000,3\n")
    assert "2,000,016 tokens fits no worker; the largest holds 846,000" in refused(capsys, str(path))


def test_a_run_in_which_nothing_can_end_is_given_up(trace_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(trace_file, "--strategy", "pull", "--kill", "every 1s") == 1
    assert "comes to no end" in capsys.readouterr().err
