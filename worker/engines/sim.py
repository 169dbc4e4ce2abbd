"""The sim engine: a GPU in a table that answers with deterministic text, at that GPU's pace and within its memory.

For tests, benchmarks and demos of a fleet on a laptop. What it says depends on the prompt and the position alone, never
on the batch, the card or the attempt. It has no tokenizer: prompts are counted by `dispatch.pricing`, from bytes.
Never here: I/O.
"""

import asyncio
import hashlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

import msgspec

from dispatch.errors import PenstockError
from dispatch.messages import FinishReason, InferenceRequest, InputKind, Sampling
from dispatch.pricing import cost_tokens, prompt_tokens
from dispatch.reports import ModelCard
from dispatch.settings import WorkerSettings
from worker.engines import sim_faults
from worker.engines.base import Chunk, Cost, EngineError, EngineInfo, EngineLoad
from worker.engines.naming import served_name
from worker.engines.sim_faults import Fault
from worker.engines.sim_gpus import KV_BYTES_PER_TOKEN, PAGE_TOKENS, SIM_GPUS
from worker.engines.sim_text import Voice
from worker.engines.speed import Speedometer, Speeds

CONTEXT_TOKENS = 131_072
_PREFILL_CHUNK_TOKENS = 2_048
_TIMER_S = 0.002
"""Event loops wake with about a millisecond's grain: shorter waits are saved up, and made good by the next ones."""
_CATCH_UP_S = 0.05
"""How far the sim may be behind its due moment and still make it good."""
_FASTEST = 1_000.0
"""The speed an instant engine is weighed with: a weight must be finite."""
_CANARY_TOKENS = 4


class _Sequence:
    """One open request inside the step loop."""

    __slots__ = ("error", "fault", "fault_at", "position", "prefill_left", "ready", "request", "tokens", "voice")

    def __init__(self, request: InferenceRequest, voice: Voice, done: int) -> None:
        self.request = request
        self.voice = voice
        self.position = done
        self.prefill_left = voice.prompt_tokens + done
        self.tokens: deque[int] = deque()
        self.ready = asyncio.Event()
        self.error: EngineError | None = None
        self.fault: Fault | None = None
        self.fault_at = done + sim_faults.STEPS_BEFORE

    @property
    def held_tokens(self) -> int:
        """KV tokens it holds now, in whole pages."""
        return -(-(self.voice.prompt_tokens + self.position - self.prefill_left) // PAGE_TOKENS) * PAGE_TOKENS

    def fail(self, error: EngineError) -> None:
        self.tokens.clear()
        self.error = error
        self.ready.set()


class SimEngine:
    """See the module's docstring."""

    def __init__(self, settings: WorkerSettings) -> None:
        if settings.sim_gpu not in SIM_GPUS:
            raise PenstockError(
                "bad_setting",
                f"The sim engine has no GPU {settings.sim_gpu!r}.",
                hint=f"Use one of: {', '.join(SIM_GPUS)}.",
                param="worker.sim_gpu",
            )
        self.progress = "starting"
        self._settings = settings
        self._name = served_name(settings, settings.model)
        self._gpu = SIM_GPUS[settings.sim_gpu]
        self._speed = settings.sim_speed
        self._kv_tokens = settings.kv_tokens or self._gpu.kv_tokens
        self._slots = settings.slots or self._gpu.slots
        self._open: dict[_Sequence, None] = {}  # a set that keeps its order: who came first is served first
        self._loop_task: asyncio.Task[None] | None = None
        self._steps = 0
        self._says_garbage = False
        self._is_instant = math.isinf(self._speed)
        pace = min(self._speed, _FASTEST)
        self._seed = Speeds(settings.weight_seed or self._gpu.tokens_per_s * pace, self._gpu.prefill_tokens_per_s * pace)
        self._speedometer = Speedometer(self._seed)

    async def start(self) -> EngineInfo:
        self.progress = ""
        card = ModelCard(
            name=self._name,
            engine="sim",
            context_tokens=CONTEXT_TOKENS,
            kv_bytes_per_token=KV_BYTES_PER_TOKEN,
            max_cost_tokens=self._kv_tokens,
            kinds=(InputKind.CHAT, InputKind.COMPLETION, InputKind.OPAQUE),
            created_at_s=int(time.time()),
            moves_overruns=True,
        )
        return EngineInfo(
            card=card,
            limit_tokens=self._kv_tokens,
            slots=self._slots,
            weight=self._seed.decode,
            device=f"sim {self._gpu.name}",
            prefill_weight=self._seed.prefill,
        )

    def cost(self, request: InferenceRequest) -> Cost:
        if request.kind is InputKind.OPAQUE:
            return Cost(max(request.cost_tokens, cost_tokens(prompt_tokens(request), 1)))
        return Cost(cost_tokens(prompt_tokens(request), request.sampling.max_tokens))

    async def generate(self, request: InferenceRequest, done: Sequence[int]) -> AsyncIterator[Chunk]:
        voice = Voice(request)
        if voice.prompt_tokens >= CONTEXT_TOKENS:
            raise EngineError(
                "context_length_exceeded",
                f"The prompt has {voice.prompt_tokens} tokens; this model's context is {CONTEXT_TOKENS}.",
                retryable=False,
            )
        ending = voice.resume(done)
        if ending is not None:
            yield Chunk(finish_reason=ending, prompt_tokens=voice.prompt_tokens, completion_tokens=len(done))
            return
        sequence = _Sequence(request, voice, len(done))
        if self._settings.sim_faults:
            sequence.fault = sim_faults.fault_in(request)
        self._open[sequence] = None
        self._ensure_loop()
        try:
            while True:
                await sequence.ready.wait()
                sequence.ready.clear()
                chunk = self._speak(sequence)
                if chunk is not None:
                    yield chunk
                    if chunk.finish_reason is not None:
                        return
                if sequence.error is not None:
                    raise sequence.error
        finally:
            self._open.pop(sequence, None)

    async def probe(self) -> None:
        before = self._steps
        request = InferenceRequest(
            id="probe", model="", kind=InputKind.COMPLETION, sampling=Sampling(max_tokens=1), prompt="probe"
        )
        async for _ in self.generate(request, ()):
            pass
        if self._steps == before:
            raise EngineError("engine_error", "The sim engine made no step.", retryable=True)

    async def canary(self) -> tuple[int, ...]:
        request = InferenceRequest(
            id="canary", model="", kind=InputKind.COMPLETION, sampling=Sampling(max_tokens=_CANARY_TOKENS), prompt="canary"
        )
        said = [token async for chunk in self.generate(request, ()) for token in chunk.tokens]
        return tuple(token + self._says_garbage for token in said)

    def steps(self) -> int:
        return self._steps

    def load(self) -> EngineLoad:
        speeds = self._seed if self._is_instant else self._speedometer.speeds()
        return EngineLoad(
            used_tokens=sum(s.held_tokens for s in self._open),
            waiting=sum(not s.held_tokens for s in self._open),
            busy_s=self._speedometer.busy_s,
            weight=speeds.decode,
            prefill_weight=speeds.prefill,
        )

    def kill(self) -> None:
        if self._loop_task is not None:
            self._loop_task.cancel()

    async def close(self) -> None:
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        for sequence in self._open:
            sequence.fail(EngineError("engine_error", "The engine was closed.", retryable=True))

    def _speak(self, sequence: _Sequence) -> Chunk | None:
        """All that is new since last time, as one chunk; None if it must be held back."""
        if sequence.request.kind is InputKind.OPAQUE and sequence.tokens:
            return Chunk(
                output=_opaque_output(sequence.request),
                finish_reason=FinishReason.STOP,
                prompt_tokens=sequence.voice.prompt_tokens,
                completion_tokens=1,
            )
        fresh = tuple(sequence.tokens)
        sequence.tokens.clear()
        text, tokens, ending = sequence.voice.say(fresh)
        if ending is None and not tokens:
            return None
        count = sequence.voice.spoken_tokens
        if ending is None:
            return Chunk(text=text, tokens=tokens)
        return Chunk(
            text=text, tokens=tokens, finish_reason=ending, prompt_tokens=sequence.voice.prompt_tokens, completion_tokens=count
        )

    def _ensure_loop(self) -> None:
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._run(), name="sim-steps")

    async def _run(self) -> None:
        """Step while anything is open. Time is kept by a due moment, so the grain of timers does not add up."""
        due = ended = time.monotonic()
        while self._open:
            batch = list(self._open)[: self._slots]
            slower = await self._strike(batch)
            duration_s, prefilled, said = self._step([s for s in batch if s.error is None])
            now = time.monotonic()
            due = max(due, now - _CATCH_UP_S) + duration_s * slower / self._speed
            await asyncio.sleep(due - now if due - now >= _TIMER_S else 0)
            for sequence, token in said:
                sequence.tokens.append(token)
                sequence.ready.set()
            began, ended = ended, time.monotonic()
            self._speedometer.stepped(len(said), prefilled, ended - began)

    def _step(self, batch: Sequence[_Sequence]) -> tuple[float, int, list[tuple[_Sequence, int]]]:
        """One step of the batch: a slice of prefill, and a token for each that is past it. Returns seconds, the tokens of
        prefill, and the new tokens."""
        self._steps += 1
        prefill_budget = _PREFILL_CHUNK_TOKENS
        prefilled = 0
        said: list[tuple[_Sequence, int]] = []
        held = sum(s.held_tokens for s in self._open)
        for sequence in batch:
            if sequence.error is not None:
                continue  # it made room for an older one in this step
            before = sequence.held_tokens
            if sequence.prefill_left:
                take = min(sequence.prefill_left, prefill_budget)
                prefill_budget -= take
                prefilled += take
                sequence.prefill_left -= take
            if not sequence.prefill_left:
                sequence.position += 1
            grown = sequence.held_tokens - before
            while held + grown > self._kv_tokens:
                # The youngest makes room: it has the least to lose.
                youngest = next(s for s in reversed(self._open) if s is sequence or s.held_tokens)
                freed = before if youngest is sequence else youngest.held_tokens
                self._overflow(youngest, held, grown)
                held -= freed
                said = [word for word in said if word[0] is not youngest]
                if youngest is sequence:
                    break
            if sequence.error is not None:
                continue
            held += grown
            if sequence.prefill_left:
                continue
            said.append((sequence, sequence.voice.token(sequence.position - 1)))
            if sequence.voice.ends_at(sequence.position) is not None:
                del self._open[sequence]
        took_s = self._gpu.step_s + self._gpu.per_sequence_s * len(said) + prefilled / self._gpu.prefill_tokens_per_s
        return took_s, prefilled, said

    async def _strike(self, batch: Sequence[_Sequence]) -> float:
        """Let the faults happen whose time has come; how many times slower the step is."""
        slower = 1.0
        for sequence in batch:
            if sequence.fault is None or sequence.position < sequence.fault_at:
                continue
            match sequence.fault:
                case Fault.CRASH:
                    sim_faults.crash()
                case Fault.HANG:
                    await asyncio.Event().wait()
                case Fault.OUT_OF_MEMORY:
                    self._overflow(sequence, self._kv_tokens, PAGE_TOKENS)
                case Fault.GARBAGE:
                    self._says_garbage = True
                case Fault.SLOW:
                    slower = sim_faults.SLOWER
        return slower

    def _overflow(self, sequence: _Sequence, held: int, grown: int) -> None:
        """Fail as CUDA would: the one that asks for what is not there, with the numbers."""
        del self._open[sequence]
        sequence.fail(
            EngineError(
                "engine_out_of_memory",
                f"{self._gpu.name} (sim) ran out of memory: tried to allocate KV for {grown} tokens; "
                f"{self._kv_tokens} in all, {self._kv_tokens - held} free.",
                retryable=True,
            )
        )


def _opaque_output(request: InferenceRequest) -> dict[str, object]:
    digest = hashlib.blake2b(msgspec.json.encode(request.input, order="sorted"), digest_size=8).hexdigest()
    return {"echo": request.input, "digest": digest}
