"""Logs: one event a line, JSON or for eyes, and never a secret."""

import json
import logging
import logging.config
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from dispatch.configuration import load_settings
from dispatch.logs import log_config

KEY = "key-4f1c2d3e"


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    root = logging.getLogger()
    for name in ("", "penstock", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.NOTSET if name else logging.WARNING)
    for handler in [h for h in root.handlers if h.get_name() == "stderr"]:
        root.removeHandler(handler)


def logged(capsys: pytest.CaptureFixture[str], form: str, level: str = "info") -> logging.Logger:
    flags = {"log.format": form, "log.level": level, "redis.url": "redis://:redis-pass@host:1/0"}
    settings = load_settings(flags, environment={"PENSTOCK_API_KEYS": KEY}, folder=Path("/nonexistent"))
    logging.config.dictConfig(log_config(settings, "gateway"))
    return logging.getLogger("penstock.gateway")


def test_json_lines_have_the_agreed_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logged(capsys, "json").info("took a request", extra={"request": "s0.1", "cost_tokens": 12, "event": "x"})
    out, err = capsys.readouterr()
    line = json.loads(err)
    assert out == ""
    assert {k: line[k] for k in ("level", "event", "logger", "service", "request", "cost_tokens", "field_event")} == {
        "level": "info",
        "event": "took a request",
        "logger": "penstock.gateway",
        "service": "gateway",
        "request": "s0.1",
        "cost_tokens": 12,
        "field_event": "x",
    }
    assert line["ts"].endswith("Z")
    assert len(line["ts"]) == len("2026-11-22T14:13:43.000000Z")
    assert datetime.fromisoformat(line["ts"]).tzinfo is not None
    assert line["version"]


def test_console_lines_show_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logged(capsys, "console").warning("lost a lease", extra={"request": "s0.1"})
    assert capsys.readouterr().err.rstrip().endswith("warning gateway  lost a lease  request=s0.1")


def test_the_level_holds(capsys: pytest.CaptureFixture[str]) -> None:
    log = logged(capsys, "json", "warning")
    log.info("quiet")
    log.warning("loud")
    assert "quiet" not in (err := capsys.readouterr().err)
    assert "loud" in err


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_gets_out(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    log = logged(capsys, form)
    log.info("in the message: %s", KEY)
    log.info("in a field", extra={"header": f"Bearer {KEY}", "nested": {"list": [KEY, "redis-pass"]}, "error": ValueError(KEY)})
    log.info("of others", extra={"url": "amqp://user:other-pass@host/", "authorization": "bearer unknown-token"})
    try:
        raise ValueError(f"in a traceback: {KEY}")
    except ValueError:
        log.exception("failed")
    err = capsys.readouterr().err
    for secret in (KEY, "redis-pass", "other-pass", "unknown-token"):
        assert secret not in err
    assert "ValueError" in err
    assert "amqp://user:***@host/" in err


def test_uvicorn_speaks_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    logged(capsys, "json")
    logging.getLogger("uvicorn.error").error("it broke")
    assert json.loads(capsys.readouterr().err)["logger"] == "uvicorn.error"
