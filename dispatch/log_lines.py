"""A line of the log that is written for every request: the same JSON as by `logging`, without a record and its filters.

Making a record, masking each of its fields and formatting it took a seventh of a gateway's time (docs/decisions/0025).
Never here: what such a line says, how other lines look (logs.py).
"""

import asyncio
import contextlib
import json
import logging
import time
from typing import Any

import msgspec

from dispatch.logs import JsonFormatter, MaskFilter


class Lines:
    """Lines of one event on one logger. What its fields hold must not be secret: a word from outside goes through `masked`.

    Lines of one turn of the event loop are written together; `flush` writes what is left at the end. Where the log is not
    JSON on one stream (eyes, tests) they go the way of all others.
    """

    def __init__(self, logger: logging.Logger, event: str) -> None:
        self._logger = logger
        self._event = event
        self._handler, self._mask, self._head = _one_stream(logger, event)
        self._waiting: list[str] = []
        self._second, self._clock = 0, ""
        self._told = False

    def masked(self, text: str) -> str:
        """A word from outside without secrets."""
        return self._mask.masked(text) if self._mask is not None else text

    def write(self, fields: dict[str, Any]) -> None:
        """One line, at INFO. The fields' names are none of the line's own."""
        if not self._logger.isEnabledFor(logging.INFO):
            return
        if self._handler is None:
            self._logger.info(self._event, extra=fields)
            return
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        self._waiting.append(f'{{"ts":"{self._now()}"{self._head}{msgspec.json.encode(fields).decode()[1:]}\n')

    def flush(self) -> None:
        """Write what waits. Raises nothing: who is answered has no part in it."""
        if self._waiting and self._handler is not None:
            text, self._waiting = "".join(self._waiting), []
            self._handler.acquire()
            try:
                self._handler.stream.write(text)
                self._handler.flush()
                self._told = False
            except (OSError, ValueError):
                self._tell(self._handler)
            finally:
                self._handler.release()

    def _tell(self, handler: logging.StreamHandler[Any]) -> None:
        """Of an error that is being handled, as logging does; once until it works again. A closed stream is closed on purpose."""
        if not self._told and not getattr(handler.stream, "closed", False):
            self._told = True
            with contextlib.suppress(OSError, ValueError):
                handler.handleError(logging.LogRecord(self._logger.name, logging.INFO, "", 0, self._event, None, None))

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._clock = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._clock}.{int((now - second) * 1_000_000):06d}Z"


def _one_stream(logger: logging.Logger, event: str) -> tuple[logging.StreamHandler[Any] | None, MaskFilter | None, str]:
    """The one stream of JSON Lines that such a line goes to, what masks it, and how it goes on after its moment."""
    handlers: list[logging.Handler] = []
    above: logging.Logger | None = logger
    while above is not None:
        handlers += above.handlers
        above = above.parent if above.propagate else None
    if len(handlers) != 1 or type(handlers[0]) is not logging.StreamHandler or logger.filters:
        return None, None, ""
    handler = handlers[0]
    mask = handler.filters[0] if len(handler.filters) == 1 else None
    if not isinstance(handler.formatter, JsonFormatter) or not isinstance(mask, MaskFilter):
        return None, None, ""
    own = json.loads(handler.formatter.format(logging.LogRecord(logger.name, logging.INFO, "", 0, event, None, None)))
    del own["ts"]
    return handler, mask, f",{msgspec.json.encode(own).decode()[1:-1]},"
