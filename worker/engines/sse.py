"""Server-sent events as an OpenAI-compatible server sends them. Pure.

Never here: what the events mean.
"""


class SseParser:
    """Lines in, the data of events out: data lines of one event are joined, comments and other fields passed over."""

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> str | None:
        """One line, without its end; the event's data when the line closed one."""
        if line.startswith("data:"):
            self._data.append(line[5:].removeprefix(" "))
            return None
        return self.flush() if not line.strip() else None

    def flush(self) -> str | None:
        """What is left when the connection closed without an empty line."""
        if not self._data:
            return None
        data = "\n".join(self._data)
        self._data.clear()
        return data
