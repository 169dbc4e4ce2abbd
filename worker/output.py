"""What an engine said and Redis does not have yet: pieces that gather while a write is under way. Pure.

Never here: when to write (worker/execution.py).
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from dispatch.messages import EntryKind, LogEntry
from worker.engines.base import Chunk, EngineError


class _ChunkData(msgspec.Struct, omit_defaults=True):
    """A chunk entry's data, as dispatch.messages.LogEntry says."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    output: Any = None


class Gathered:
    """Pieces in order. Text and tokens of neighbours are one piece; every opaque output is a piece of its own."""

    def __init__(self) -> None:
        self._pieces: deque[_ChunkData] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, chunk: Chunk) -> None:
        """Take what a chunk carries; nothing, if it carries only an ending."""
        if chunk.output is not None:
            self._pieces.append(_ChunkData(output=chunk.output))
            self.size += len(msgspec.json.encode(chunk.output))
            return
        if not chunk.text and not chunk.tokens:
            return
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.output is None:
            last.text += chunk.text
            last.tokens += chunk.tokens
        else:
            self._pieces.append(_ChunkData(chunk.text, chunk.tokens))
        self.size += len(chunk.text) + len(chunk.tokens)

    def take(self) -> bytes:
        """The oldest piece, encoded as an entry's data; b"" when there is none."""
        if not self._pieces:
            return b""
        data = encoded(self._pieces.popleft())
        if not self._pieces:
            self.size = 0
        return data


def encoded(piece: _ChunkData) -> bytes:
    """An entry's data: `{"text", "tokens"}` or `{"output"}`."""
    if piece.output is not None:
        return msgspec.json.encode({"output": piece.output})
    try:
        return msgspec.json.encode({"text": piece.text, "tokens": piece.tokens})
    except UnicodeEncodeError:
        # A lone surrogate is no character: JSON in UTF-8 cannot carry it.
        text = piece.text.encode("utf-8", "replace").decode()
        return msgspec.json.encode({"text": text, "tokens": piece.tokens})


def tokens_done(entries: Iterable[LogEntry]) -> Sequence[int]:
    """The token ids of an output so far. Raises EngineError when something was sent that no token ids stand for."""
    done: list[int] = []
    sent = False
    for entry in entries:
        if entry.kind is EntryKind.CHUNK:
            piece = msgspec.json.decode(entry.data, type=_ChunkData)
            done.extend(piece.tokens)
            sent = sent or bool(piece.text) or piece.output is not None
    if sent and not done:
        raise EngineError(
            "engine_error",
            "A part of the answer was sent and its engine cannot continue it: it gives no token ids.",
            retryable=False,
        )
    return done
