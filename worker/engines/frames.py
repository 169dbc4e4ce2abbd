"""What travels between a worker and the child process its engine runs in: small tagged structs, length first, msgpack.

Never here: processes, engines.
"""

import asyncio
import struct
from typing import Any

import msgspec
from pydantic import SecretStr

from dispatch.errors import PenstockError
from dispatch.messages import InferenceRequest
from dispatch.settings import WorkerSettings
from worker.engines.base import Chunk, EngineError, EngineInfo, EngineLoad

_LENGTH = struct.Struct("!I")
_LARGEST_BYTES = 256 * 1024 * 1024  # a tokenizer.json of a few MB is the largest thing that is ever sent


class _Frame(msgspec.Struct, tag=True, array_like=True):
    pass


# --- to the child


class Load(_Frame):
    """Make this engine and start it."""

    engine: str
    settings: dict[str, Any]


class Generate(_Frame):
    """Open a request; its pieces come back under `call`."""

    call: int
    request: InferenceRequest
    done: tuple[int, ...]


class Cancel(_Frame):
    """Close a request and free what it holds."""

    call: int


class Probe(_Frame):
    """Do a minimal real inference; answered by Ended or Failed."""

    call: int


class Canary(_Frame):
    """Answer a fixed prompt greedily; answered by Tokens or Failed."""

    call: int


class Close(_Frame):
    """Stop everything and exit."""


# --- to the parent


class Progress(_Frame):
    """How far `start` is, for people."""

    text: str


class Started(_Frame):
    """The engine has started."""

    info: EngineInfo


class Steps(_Frame):
    """The engine's step counter now."""

    steps: int


class Counted(_Frame):
    """What the engine counts of itself now."""

    load: EngineLoad


class Piece(_Frame):
    """A chunk of a request's answer."""

    call: int
    chunk: Chunk


class Ended(_Frame):
    """A request's answer is complete, or a probe went well."""

    call: int


class Tokens(_Frame):
    """What the canary said."""

    call: int
    tokens: tuple[int, ...]


class Failed(_Frame):
    """A call (0: `start`) ended with an error, which is raised again in the parent."""

    call: int
    code: str
    message: str
    retryable: bool = False
    penstock: bool = False
    hint: str = ""
    param: str | None = None
    extra: dict[str, Any] = {}

    @classmethod
    def of(cls, call: int, error: Exception) -> "Failed":
        """The frame for an error. Of an unforeseen one only the type: its message could quote what the request said."""
        if isinstance(error, PenstockError):
            return cls(call, error.code, error.message, error.kind.retryable, True, error.hint, error.param, dict(error.extra))
        if isinstance(error, EngineError):
            return cls(call, error.code, str(error), error.retryable)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
            return cls(call, "engine_out_of_memory", "The engine ran out of memory.", True)
        return cls(call, "engine_error", f"The engine failed with {type(error).__name__}.", True)

    def error(self) -> Exception:
        """The error again."""
        if self.penstock:
            return PenstockError(self.code, self.message, hint=self.hint, param=self.param, extra=self.extra)
        return EngineError(self.code, self.message, retryable=self.retryable)


class Dying(_Frame):
    """The engine is dead though its process is not yet: the process exits after this."""

    evidence: str


ToChild = Load | Generate | Cancel | Probe | Canary | Close
ToParent = Progress | Started | Steps | Counted | Piece | Ended | Tokens | Failed | Dying

_encoder = msgspec.msgpack.Encoder()
_to_child = msgspec.msgpack.Decoder(ToChild)
_to_parent = msgspec.msgpack.Decoder(ToParent)


def packed(frame: ToChild | ToParent) -> bytes:
    """A frame as it travels."""
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


async def read_to_child(reader: asyncio.StreamReader) -> ToChild | None:
    """The next frame for the child; None when the other side is gone."""
    body = await _read(reader)
    return None if body is None else _to_child.decode(body)


async def read_to_parent(reader: asyncio.StreamReader) -> ToParent | None:
    """The next frame for the parent; None when the other side is gone."""
    body = await _read(reader)
    return None if body is None else _to_parent.decode(body)


async def _read(reader: asyncio.StreamReader) -> bytes | None:
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > _LARGEST_BYTES:
            return None
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def settings_document(settings: WorkerSettings) -> dict[str, Any]:
    """A worker's settings as plain values, secrets in clear: for the child's pipe alone, never for a log."""

    def plain(value: Any) -> Any:
        return value.get_secret_value() if isinstance(value, SecretStr) else value

    return {name: plain(value) for name, value in settings.model_dump().items()}
