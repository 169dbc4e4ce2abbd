"""Reading, making, scaling and repeating what arrives."""

from itertools import pairwise
from pathlib import Path

import pytest

from penstock.failures import USAGE, Failure
from penstock.simulator.fleet import capacity_requests_per_s, cost_of, fleet_of
from penstock.simulator.trace import Arrival, made_up, read_trace, repeated, scaled, write_trace

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:05.2299600,3180,8
2023-11-16 18:17:04.0000000,110,27
"""


def test_a_public_trace_is_read_in_order_from_its_first_arrival(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    first, second, third = read_trace(path)
    assert (first.at_s, first.prompt_tokens, first.answer_tokens) == (0.0, 4808, 10)
    assert (round(second.at_s, 6), second.prompt_tokens) == (0.02004, 110)
    assert (round(third.at_s, 6), third.prompt_tokens) == (1.25, 3180)


def test_plain_seconds_do_too(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2.5,10,1\n4,20,2\n")
    assert read_trace(path) == [Arrival(0.0, 10, 1), Arrival(1.5, 20, 2)]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    arrivals = made_up(50, seed=3)
    write_trace(tmp_path / "t.csv", arrivals)
    for wrote, read in zip(arrivals, read_trace(tmp_path / "t.csv"), strict=True):
        assert read.at_s == pytest.approx(wrote.at_s, abs=2e-6)
        assert (read.prompt_tokens, read.answer_tokens, read.session) == (wrote.prompt_tokens, wrote.answer_tokens, wrote.session)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no column TIMESTAMP"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "no column GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\nyesterday,2,3\n", "line 3"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,two,3\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,0\n", "at least one token"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnan,2,3\n", "line 2"),
    ],
)
def test_a_bad_trace_says_where(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(Failure) as failed:
        read_trace(path)
    assert why in str(failed.value)
    assert failed.value.exit_code == USAGE


def test_bytes_that_are_no_text_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(Failure, match="no CSV text"):
        read_trace(tmp_path / "trace.csv")
    with pytest.raises(Failure, match="cannot read"):
        read_trace(tmp_path / "none.csv")


def test_scaling_keeps_the_bursts_and_sets_the_mean() -> None:
    arrivals = made_up(500, seed=3)
    faster = scaled(arrivals, 40.0)
    gap_s = faster[-1].at_s / (len(faster) - 1)
    assert 1.0 / gap_s == pytest.approx(40.0)
    factor = faster[1].at_s / arrivals[1].at_s
    assert all(f.at_s == pytest.approx(a.at_s * factor) for a, f in zip(arrivals, faster, strict=True))


def test_a_short_trace_is_played_again() -> None:
    arrivals = made_up(10, seed=3)
    thrice = repeated(arrivals, 25)
    assert len(thrice) == 25
    assert [a.prompt_tokens for a in thrice[10:20]] == [a.prompt_tokens for a in arrivals]
    assert all(a.at_s <= b.at_s for a, b in pairwise(thrice))
    assert repeated(arrivals, 4) == arrivals[:4]


def test_capacity_adds_up_and_is_what_full_batches_do() -> None:
    trace = [Arrival(float(i), 1_000, 200) for i in range(10)]
    (a100,) = fleet_of("A100")
    together = min(a100.gpu.slots, a100.gpu.kv_tokens / cost_of(trace[0]))
    a_request_s = 1_000 / a100.gpu.prefill_tokens_per_s + 200 * (a100.gpu.step_s / together + a100.gpu.per_sequence_s)
    assert capacity_requests_per_s((a100,), trace) == pytest.approx(1 / a_request_s)
    assert capacity_requests_per_s(fleet_of("A100*3"), trace) == pytest.approx(3 / a_request_s)


def test_a_fleet_is_named_after_its_gpus() -> None:
    assert [m.name for m in fleet_of("h200, A10*2")] == ["H200-1", "A10-1", "A10-2"]
    assert [m.name for m in fleet_of("A10,A10*10")][0:2] == ["A10-01", "A10-02"]


@pytest.mark.parametrize("text", ["", "B300", "A10*0", "A10*", "A10*2*3", "A10,,A100", "A10*99999"])
def test_what_is_no_fleet_is_refused(text: str) -> None:
    with pytest.raises(Failure) as failed:
        fleet_of(text)
    assert failed.value.exit_code == USAGE
    assert "A100" in failed.value.to_do
