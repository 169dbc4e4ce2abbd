"""Logs: one event a line on stderr, for eyes or as JSON Lines, every logger through the same formatter, secrets masked.

Never here: what is worth logging. stdout is data and never gets a line from here.
"""

import json
import logging
import logging.config
import re
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dispatch.configuration import MASK, secrets_of
from dispatch.settings import Settings

# Attributes every LogRecord has: what else stands on one came by `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}

_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s@/]+@", re.IGNORECASE)
_BEARER = re.compile(r"(\bbearer\s+)[^\s\"',]+", re.IGNORECASE)


def configure(settings: Settings, service: str) -> None:
    """Set up logging for this process. `service` is its role: gateway, worker, ..."""
    logging.config.dictConfig(log_config(settings, service))


def log_config(settings: Settings, service: str) -> dict[str, Any]:
    """The same as a dictConfig document, for uvicorn's `log_config=`."""
    level = settings.log.level.upper()
    kind = settings.log.format
    if kind == "auto":
        kind = "console" if sys.stderr.isatty() else "json"
    formatter = {"()": f"{__name__}.{'ConsoleFormatter' if kind == 'console' else 'JsonFormatter'}", "service": service}
    # uvicorn's own start and stop lines repeat ours; its access log would carry raw paths.
    quiet = level if level in ("WARNING", "ERROR", "DEBUG") else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"mask": {"()": f"{__name__}.MaskFilter", "secrets": list(secrets_of(settings))}},
        "formatters": {"line": formatter},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "line", "filters": ["mask"]}
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            "penstock": {"level": level},
            "uvicorn": {"level": quiet, "handlers": [], "propagate": True},
            "uvicorn.error": {"level": quiet, "handlers": [], "propagate": True},
            "uvicorn.access": {"level": "WARNING", "handlers": [], "propagate": True},
        },
    }


class MaskFilter(logging.Filter):
    """Replaces every known secret, password in a URL and bearer token, in the message, the fields and the traceback."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        # Masking a one-letter "secret" would make every line unreadable and hide nothing.
        self._secrets = sorted((s for s in secrets if len(s) >= 4), key=len, reverse=True)

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask in place; never drops a record."""
        record.msg, record.args = self.masked(record.getMessage()), None
        for name, value in vars(record).items():
            if name not in _STANDARD:
                setattr(record, name, self._mask_value(value))
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self.masked(record.exc_text)
        return True

    def _mask_value(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, dict):
            return {str(k): self._mask_value(v) for k, v in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._mask_value(v) for v in value]
        return self.masked(str(value))

    def masked(self, text: str) -> str:
        """A text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        text = _IN_URL.sub(rf"\1:{MASK}@", text)
        return _BEARER.sub(rf"\1{MASK}", text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service
        self._version = _version()

    def format(self, record: logging.LogRecord) -> str:
        """ts, level, event, logger, service, version, then the event's own fields."""
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            "service": self._service,
            "version": self._version,
        }
        for name, value in _fields(record).items():
            # A field never overwrites one of the line's own.
            line[f"field_{name}" if name in line else name] = value
        if record.exc_info and record.exc_info[0]:
            line["error.type"] = record.exc_info[0].__name__
        if record.exc_text:
            line["error.stack"] = record.exc_text
        return json.dumps(line, ensure_ascii=False, default=str)


class ConsoleFormatter(logging.Formatter):
    """For eyes: time, level when it matters, where, what, fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it if there is one."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "  ".join(f"{name}={value}" for name, value in _fields(record).items())
        line = f"{clock}.{int(record.msecs):03d} {record.levelname.lower():<7} {self._service:<8} {record.getMessage()}"
        return "\n".join(part for part in (f"{line}  {fields}".rstrip(), record.exc_text) if part)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD and not name.startswith("_")}


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "unknown"
