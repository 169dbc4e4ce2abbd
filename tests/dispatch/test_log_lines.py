"""A line written for every request is the line that logging would have written."""

import asyncio
import io
import json
import logging
import logging.config
import sys
from collections.abc import Iterator
from typing import cast

import pytest

from dispatch.log_lines import Lines
from dispatch.logs import log_config
from dispatch.settings import LogSettings, RedisSettings, Settings

FIELDS = {"method": "POST", "route": "/v1/requests", "status": 200, "duration_s": 0.0123, "http_request_id": 'req_"1"'}


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """JSON Lines of a logger of our own, as a process of ours is set up."""
    settings = Settings(redis=RedisSettings(url="redis://:hunter22@r:6379/0"), log=LogSettings(format="json"))
    config = log_config(settings, "gateway")
    made = io.StringIO()
    config["handlers"]["stderr"]["stream"] = made
    config["loggers"] = {"lines": {"level": "INFO", "handlers": ["stderr"], "propagate": False}}
    config["root"] = {}
    logging.config.dictConfig(config)
    yield made
    logging.getLogger("lines").handlers.clear()


def alone() -> logging.Logger:
    """That logger, without the handlers that pytest adds."""
    logger = logging.getLogger("lines")
    logger.handlers = [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]
    return logger


async def test_it_is_the_same_line(stream: io.StringIO) -> None:
    logger = alone()
    lines = Lines(logger, "Answered")
    lines.write(FIELDS)
    assert stream.getvalue() == "", "lines of one turn of the loop go together"
    await asyncio.sleep(0)
    logger.info("Answered", extra=FIELDS)
    ours, theirs = (json.loads(line) for line in stream.getvalue().splitlines())
    assert ours.pop("ts")[:16] == theirs["ts"][:16] and len(stream.getvalue().splitlines()[0]) > 100
    theirs.pop("ts")
    assert ours == theirs and list(ours) == list(theirs)


async def test_words_from_outside_are_masked_and_levels_kept(stream: io.StringIO) -> None:
    logger = alone()
    lines = Lines(logger, "Answered")
    lines.write({"http_request_id": lines.masked("x-hunter22-bearer sesame")})
    lines.flush()
    assert "hunter22" not in stream.getvalue() and "sesame" not in stream.getvalue() and stream.getvalue().count("\n") == 1
    logger.setLevel("WARNING")
    lines.write(FIELDS)
    lines.flush()
    assert stream.getvalue().count("\n") == 1


class Full(io.StringIO):
    """A stream whose disk is full while it is."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


async def test_lines_that_cannot_be_written_are_told_of_once(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, full = alone(), Full()
    cast(logging.StreamHandler[io.StringIO], logger.handlers[0]).setStream(full)
    lines = Lines(logger, "Answered")

    def told() -> int:
        lines.write(FIELDS)
        lines.flush()
        return capsys.readouterr().err.count("--- Logging error ---")

    assert [told() for _ in range(3)] == [1, 0, 0]
    full.full = False
    assert told() == 0 and full.getvalue().count("\n") == 1
    full.full = True
    assert told() == 1, "a new one is told of anew"
    full.full = False
    told()
    full.full = True
    monkeypatch.setattr(logging, "raiseExceptions", False)
    assert told() == 0


async def test_a_closed_stream_or_stderr_breaks_nothing(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = alone()
    lines = Lines(logger, "Answered")
    stream.close()
    lines.write(FIELDS)
    lines.flush()
    assert capsys.readouterr().err == ""
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stderr", gone)
    cast(logging.StreamHandler[io.StringIO], logger.handlers[0]).stream = Full()
    lines.write(FIELDS)
    lines.flush()


async def test_elsewhere_it_goes_the_way_of_all_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="penstock.gateway")
    lines = Lines(logging.getLogger("penstock.gateway"), "Answered")
    lines.write(FIELDS)
    assert [record.route for record in caplog.records] == ["/v1/requests"]  # type: ignore[attr-defined]
