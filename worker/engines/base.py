"""What an engine is: the port between the worker and whatever generates.

Never here: leases, Redis, retries. An engine knows requests and tokens, nothing of the queue.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dispatch.messages import FinishReason, InferenceRequest
from dispatch.reports import ModelCard, TokenizerFiles


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request needs at most: KV tokens, and device bytes beyond them."""

    tokens: int
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer: new text with the ids of the tokens it came from, or an opaque `output`.

    Text never ends inside a UTF-8 character or a stop string. The last chunk carries `finish_reason`; the token counts
    on it are of the whole answer, `done` included.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    output: Any = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a started engine says of itself. `limit_tokens`: KV tokens it can hold; `slots`: requests at once.

    `weight` and `prefill_weight` seed its speeds (decoded tokens/s with 32 sequences, prompt tokens/s) until `load` knows better.
    `longest_step_s`: how long one step may honestly take (a slice of prefill on a slow CPU); 0 where that is no matter.
    `pooled`: its KV memory was taken whole at the start; else it grows with what is held, and the device must have it then.
    """

    card: ModelCard
    limit_tokens: int
    slots: int
    weight: float
    device: str
    tokenizer: TokenizerFiles | None = None
    longest_step_s: float = 0.0
    prefill_weight: float = 0.0
    pooled: bool = True


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine counts of itself now; None where it cannot tell.

    `used_tokens`: KV tokens it holds; `waiting`: requests it has not begun to compute; `busy_s`: seconds spent in steps so far.
    `weight` and `prefill_weight`: its speeds as measured in its own steps.
    """

    used_tokens: int | None = None
    waiting: int | None = None
    busy_s: float | None = None
    weight: float | None = None
    prefill_weight: float | None = None


class EngineError(Exception):
    """An engine could not do a request. `code` is from dispatch.errors; `retryable`: another try may succeed."""

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class EngineDead(Exception):
    """The engine itself is gone (crash, out of memory): whatever it held must move on. The message says the evidence.

    `own_fault`: it died of what it did. Otherwise somebody ended it, and what it ran is not suspect.
    """

    def __init__(self, evidence: str = "", *, own_fault: bool = True) -> None:
        super().__init__(evidence)
        self.own_fault = own_fault


class Engine(Protocol):
    """What generates inside a worker. All methods run in one event loop."""

    progress: str  # what `start` is doing, for people; "" when started

    async def start(self) -> EngineInfo:
        """Load and warm up; may take minutes. Raises PenstockError when it cannot (missing folder, too little memory)."""
        ...

    def cost(self, request: InferenceRequest) -> Cost:
        """What the request needs at most."""
        ...

    def generate(self, request: InferenceRequest, done: Sequence[int]) -> AsyncIterator[Chunk]:
        """Yield the answer after `done` (token ids already sent). Closing the iterator IS cancel and frees its memory.

        Every ending (EOS, stop, max_tokens) is tested on `done` before anything is computed.
        """
        ...

    async def probe(self) -> None:
        """A minimal real inference; raises when the engine cannot."""
        ...

    async def canary(self) -> tuple[int, ...]:
        """The greedy tokens of a fixed prompt, always the same on a sound engine; () where it cannot tell."""
        ...

    def steps(self) -> int:
        """A number that grows while the engine makes steps (prefill included): leases are renewed only while it does.

        Raises EngineDead when the engine is gone, so that the worker learns of it also while nothing runs.
        """
        ...

    def load(self) -> EngineLoad:
        """What it counts of itself; cheap, asked with every heartbeat."""
        ...

    def kill(self) -> None:
        """It hangs: end it as hard as can be, so that `close` has nothing to wait for."""
        ...

    async def close(self) -> None:
        """Stop and free everything."""
        ...
