"""What the command line says without a server: help, suggestions, and each bad input in what, why, what to do."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.cli import build_parser, main

PENSTOCK = Path(sys.executable).parent / "penstock"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(arguments)
    return code, capsys.readouterr().err


def verbs() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(parser: object, path: tuple[str, ...]) -> None:
        for action in parser._actions:  # type: ignore[attr-defined]
            for name, child in (
                getattr(action, "choices", None).items() if isinstance(getattr(action, "choices", None), dict) else ()
            ):
                found.append((*path, name))
                walk(child, (*path, name))

    walk(build_parser(), ())
    return found


def test_all_verbs_of_the_issue_are_there() -> None:
    top = {verb[0] for verb in verbs()}
    expected = {
        "up",
        "gateway",
        "worker",
        "autoscaler",
        "agent",
        "chat",
        "submit",
        "request",
        "requests",
        "dead",
        "top",
        "ps",
        "queues",
        "scale",
        "simulate",
        "doctor",
        "config",
    }
    assert top == expected
    assert {verb[1] for verb in verbs() if verb[0] == "request" and len(verb) > 1} == {"show", "why", "stream", "cancel", "retry"}
    assert {verb[1] for verb in verbs() if verb[0] == "dead" and len(verb) > 1} == {"list", "show", "retry", "purge"}
    scale = {"show", "explain", "set", "pause", "resume", "history"}
    assert {verb[1] for verb in verbs() if verb[0] == "scale" and len(verb) > 1} == scale


@pytest.mark.parametrize("verb", [(), *verbs()], ids=" ".join)
def test_every_verb_has_an_example(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    assert "example:\n  penstock" in capsys.readouterr().out


def test_help_is_quick() -> None:
    """Under 0.3 s of the processor's own time, best of five: how long a busy machine lets it wait says nothing about it."""
    spans = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([PENSTOCK, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spans.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spans) < 0.3


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import sys, penstock.cli; penstock.cli.build_parser(); print(*sys.modules)"
    modules = set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())
    assert modules & {"torch", "transformers", "redis", "fastapi", "pydantic", "httpx2", "uvicorn"} == set()


def test_python_m_penstock_is_penstock() -> None:
    done = subprocess.run([sys.executable, "-m", "penstock", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("penstock ")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["gatway"], ["gatway", "Did you mean gateway?"]),
        (["up", "--modle", "x"], ["penstock up", "--modle", "Did you mean --model?"]),
        (["ps", "-o", "yaml"], ["yaml", "table, json, jsonl"]),
        (["up", "--workers", "many"], ["--workers", "'many' is not a number"]),
        (["submit"], ["needs a PROMPT or --input", "neither"]),
        (["submit", "--input", "{"], ["--input is not valid JSON", "Give one JSON object"]),
        (["submit", "--input", "@/nonexistent"], ["/nonexistent cannot be read", "No such file"]),
        (["submit", "x", "--timeout", "soon"], ["'soon' is no span of time", "30s"]),
        (["request", "show"], ["required: ID"]),
        (["ps", "--server", "localhost:8000"], ["is no URL", "http://127.0.0.1:8000"]),
        (["config", "check", "--port", "x"], ["gateway.port = 'x' (from flag) is not valid", "port to listen on"]),
        (
            ["up", "--model", "./no-such-folder"],
            ["model folder no-such-folder cannot be used", "no such folder", "save_pretrained"],
        ),
        (["worker", "--model", "my model"], ["cannot use 'my model' as a model's name", "letters, digits", "--name"]),
        (["up", "--engine", "sim", "--model", "{m}"], ["cannot use '{m}' as a model's name", "--name"]),
        (["worker", "--name", "my model"], ["worker.served_name = 'my model'", "letters, digits"]),
        (["worker", "--model", "./no-such-folder"], ["model folder no-such-folder cannot be used", "no such folder"]),
        (
            ["gateway", "--redis", "redis://127.0.0.1:1/0"],
            ["Redis at 127.0.0.1:1 does not answer", "Start it, or name another one"],
        ),
        (["up", "--redis", "redis://:pw@127.0.0.1:1/0", "--ephemeral"], ["Redis at 127.0.0.1:1 does not answer"]),
        (["up", "--host", "0.0.0.0", "--ephemeral"], ["will not listen on 0.0.0.0 without API keys", "PENSTOCK_API_KEYS"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].isalpha() else None,
)
def test_bad_input_is_answered_with_what_why_and_what_to_do(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
    done = subprocess.run([PENSTOCK, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert [part for part in parts if part not in done.stderr] == []
    assert done.returncode in (2, 3)
    assert done.stderr.startswith("penstock: ")
    assert "\n  do:  " in done.stderr
    assert "Traceback" not in done.stderr
    assert "pw" not in done.stderr


def test_no_gateway_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = said(capsys, "ps", "--server", "http://127.0.0.1:1")
    assert code == 3
    assert "Cannot reach the gateway at http://127.0.0.1:1" in err
    assert "penstock up" in err


def test_config_show_tells_origins_and_masks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_API_KEYS", "hunter22")
    assert main(["config", "show", "--origin", "--redis", "redis://:hunter23@h:1/0"]) == 0
    out = capsys.readouterr().out
    assert "hunter" not in out
    assert "environment PENSTOCK_API_KEYS" in out
    assert "redis://:***@h:1/0" in out
    assert main(["config", "check"]) == 0


def test_doctor_names_what_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--redis", "redis://127.0.0.1:1/0"]) == 1
    assert "[-] redis: Redis at 127.0.0.1:1 does not answer" in capsys.readouterr().out


def test_a_missing_engine_is_told_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, err = said(capsys, "up", "--ephemeral")
    assert code == 2
    assert 'pip install "penstock[transformers]"' in err
