"""Tables in words: no epoch milliseconds, no JSON, units at the values."""

import json
import time
from typing import Any

import pytest

from penstock.output import moment, named, show, show_one


def table(capsys: pytest.CaptureFixture[str], document: dict[str, Any]) -> dict[str, str]:
    show_one("table", document)
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("oldest_wait_ms", 14_200, ("oldest_wait", "14.2s")),
        ("oldest_wait_ms", None, ("oldest_wait", "-")),
        ("cold_start_s", 95.0, ("cold_start", "1m35s")),
        ("eta_seconds", None, ("eta", "-")),
        ("rss_bytes", 3 * 1024**3, ("rss", "3.0 GiB")),
        ("tokens_per_s", 412.5, ("tokens_per_s", "412.5")),
        ("attempts", 2, ("attempts", "2")),
        ("paused", True, ("paused", "yes")),
        (
            "lines",
            [{"priority": "low", "wait_ms": 500}, {"priority": "high"}],
            ("lines", "priority low, wait 0.5s; priority high"),
        ),
        ("totals", {"completed": 3, "failed": None}, ("totals", "completed 3")),
        ("bounds", [0, 4], ("bounds", "0, 4")),
        ("nothing", {}, ("nothing", "-")),
    ],
    ids=str,
)
def test_values_carry_their_units(name: str, value: object, expected: tuple[str, str]) -> None:
    assert named(name, value) == expected


def test_moments_are_by_the_clock_and_by_how_long_ago() -> None:
    now_ms = time.time() * 1000
    said = moment(now_ms - 75_000)
    assert said.endswith("(1m15s ago)") and time.strftime("%H:%M:%S", time.localtime(now_ms / 1000 - 75)) in said
    assert moment(now_ms + 60_500).endswith("(in 1m00s)")
    assert moment(0).startswith(time.strftime("%Y-%m-%d", time.localtime(0)))
    assert named("created_at_ms", now_ms)[0] == "created_at" and named("at_ms", now_ms)[0] == "at"


def test_one_object_shows_no_machine_words(capsys: pytest.CaptureFixture[str]) -> None:
    at_ms = int(time.time() * 1000)
    document = {"object": "request", "id": "s0.1", "created_at_ms": at_ms, "links": {"self": "/x"}, "lines": [{"backlog": 1}]}
    shown = table(capsys, document)
    words = " ".join(shown.values())
    assert set(shown) == {"id", "created_at", "lines"} and str(at_ms) not in words and not set('{}[]"') & set(words)
    show_one("json", document)
    assert json.loads(capsys.readouterr().out) == document, "programs get all of it, as it came"


def test_a_list_is_rows_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "a", "n": 1.5}, {"id": "b", "n": None}]
    columns = (("id", lambda r: r["id"]), ("n", lambda r: r["n"]))
    show("table", rows, columns, empty="none")
    assert capsys.readouterr().out.splitlines() == ["ID  N", "a   1.5", "b   -"]
    show("jsonl", rows, columns, empty="none")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    show("table", [], columns, empty="none")
    assert capsys.readouterr().err == "none\n"
