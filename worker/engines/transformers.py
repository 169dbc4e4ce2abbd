"""The transformers engine: a model folder or hub id on the library's continuous batching, on CPU and CUDA.

One KV budget for all requests; each has its own sampling; closing a request's iterator frees its blocks before the next
step. Never here: loading (transformers_loading.py), choosing tokens (transformers_sampling.py), text (transcript.py), a thread
that computes and lives on beside the generation loop's.
"""

import asyncio
import itertools
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jinja2 import TemplateError

from dispatch.errors import PenstockError
from dispatch.messages import InferenceRequest, InputKind
from dispatch.pricing import cost_tokens, prompt_tokens
from dispatch.reports import ModelCard
from dispatch.settings import WorkerSettings
from worker import reservation
from worker.engines.base import Chunk, Cost, EngineDead, EngineError, EngineInfo, EngineLoad
from worker.engines.speed import BUSY_SEQUENCES, CPU_SHAPE, GPU_SHAPE, Speedometer, Speeds
from worker.engines.transcript import Transcript
from worker.engines.transformers_loading import LoadedModel, load, locate, pick_device

_PROBE_TIMEOUT_S = 60.0
_CANARY, _CANARY_TOKENS = "Water runs down from the gate to the turbine, and", 8
_MEASURED_SEQUENCES = 8
_PREFILL_FACTOR = 10
"""Prompt tokens are read at least so many times faster than tokens are decoded; what is measured later says how much."""
_log = logging.getLogger("penstock.engine")


class _Open:
    """One request inside the library: what it has generated so far, and a bell that rings when there is more."""

    __slots__ = ("error", "finished", "ids", "more")

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.finished = False
        self.error: str | None = None
        self.more = asyncio.Event()

    def heard(self, output: Any) -> None:
        """The library's callback, in the event loop: `output` carries all ids generated so far."""
        self.ids = output.generated_tokens
        self.finished = output.is_finished()
        self.error = output.error
        self.more.set()


class TransformersEngine:
    """See the module's docstring."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.progress = "starting"
        self._settings = settings
        self._names = itertools.count()
        self._loaded: LoadedModel | None = None
        self._manager: Any = None
        self._eos: frozenset[int] = frozenset()
        self._limit_tokens = 0
        self._speedometer: Speedometer | None = None

    async def start(self) -> EngineInfo:
        locate(self._settings)  # a missing folder is known before seconds of imports
        # libgomp keeps a team for each thread that ever computed in parallel, as long as that lives; with more of them than cores
        # the generation loop's team sleeps at each barrier (docs/decisions/0028). So this thread ends with its work.
        loading = ThreadPoolExecutor(1, "loading")
        try:
            loaded, device = await asyncio.get_running_loop().run_in_executor(loading, self._load)
        finally:
            loading.shutdown(wait=False)
        from worker.engines.transformers_batching import PAGE_TOKENS, batch_tokens, capacity_tokens, slots_of

        self._loaded = loaded
        self._eos = frozenset(loaded.files.eos_token_ids)
        self._limit_tokens, slots = capacity_tokens(self._manager), slots_of(self._manager)
        if self._limit_tokens < PAGE_TOKENS:
            raise PenstockError(
                "bad_setting",
                f"Memory is left for {self._limit_tokens} KV tokens beside the model's weights; that is too few for any request.",
                hint="Use a smaller model, fewer worker.slots, or a device with more free memory.",
                param="worker.kv_tokens",
            )
        self.progress = "measuring its speed"
        weight = await self._measure(slots)
        self.progress = ""
        _log.info(
            "started the engine", extra={"model": loaded.name, "kv_tokens": self._limit_tokens, "tokens_per_s": round(weight)}
        )
        card = ModelCard(
            name=loaded.name,
            engine="transformers",
            context_tokens=loaded.context_tokens,
            kv_bytes_per_token=loaded.kv_bytes_per_token,
            max_cost_tokens=self._limit_tokens,
            kinds=(InputKind.CHAT, InputKind.COMPLETION) if loaded.files.chat_template else (InputKind.COMPLETION,),
            temperature=loaded.suggested.get("temperature", 1.0),
            top_p=loaded.suggested.get("top_p", 1.0),
            top_k=int(loaded.suggested.get("top_k", 0)),
            created_at_s=int(time.time()),
            moves_overruns=True,
        )
        # A slice of prefill is at best as quick a token as measured; on a GPU it is so much quicker that it does not matter.
        longest_step_s = batch_tokens(slots) / weight if device == "cpu" else 0.0
        seed = _seed(weight, device, self._settings.weight_seed)
        self._speedometer = Speedometer(seed, CPU_SHAPE if device == "cpu" else GPU_SHAPE)
        return EngineInfo(
            card, self._limit_tokens, slots, seed.decode, device, loaded.files, longest_step_s, prefill_weight=seed.prefill
        )

    def cost(self, request: InferenceRequest) -> Cost:
        return Cost(cost_tokens(prompt_tokens(request), request.sampling.max_tokens))

    async def generate(self, request: InferenceRequest, done: Sequence[int]) -> AsyncIterator[Chunk]:
        sampling = request.sampling
        prompt = self._prompt(request)
        self._check_fits(len(prompt), sampling.max_tokens)
        eos = frozenset[int]() if request.body.get("ignore_eos") else self._eos
        transcript = Transcript(self._decode, max_tokens=sampling.max_tokens, stop=sampling.stop, eos=eos)
        for token in done:
            transcript.feed(token)
        transcript.take()  # was shown by the attempt that sent `done`
        if transcript.ending is not None:
            yield Chunk(finish_reason=transcript.ending, prompt_tokens=len(prompt), completion_tokens=transcript.tokens)
            return
        from worker.engines import transformers_sampling

        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        chosen = transformers_sampling.arguments(sampling, seed)
        name = f"{request.id}/{next(self._names)}"
        call = self._submit(name, [*prompt, *done], sampling.max_tokens - len(done), chosen, sorted(eos))
        seen, unsent = 0, list[int]()
        try:
            while True:
                await call.more.wait()
                call.more.clear()
                new, seen = call.ids[seen:], len(call.ids)
                for token in new:
                    if transcript.ending is None:
                        transcript.feed(token)
                        unsent.append(token)
                text = transcript.take()
                if transcript.ending is not None:
                    yield Chunk(text, tuple(unsent), None, transcript.ending, len(prompt), transcript.tokens)
                    return
                if call.finished:
                    raise self._failure(call)
                if text:
                    yield Chunk(text, tuple(unsent), prompt_tokens=len(prompt), completion_tokens=transcript.tokens)
                    unsent.clear()
        finally:
            self._forget(name, call)

    async def probe(self) -> None:
        loaded = self._running()
        first = next(iter(self._eos), 0)
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                ids = await self._run_raw([first], 1)
        except TimeoutError as error:
            raise EngineError("engine_error", f"No token came within {_PROBE_TIMEOUT_S:.0f} s.", retryable=True) from error
        if not 0 <= ids[0] < loaded.model.config.get_text_config().vocab_size:
            raise EngineError("engine_error", "The engine answered a probe with a token that does not exist.", retryable=True)

    async def canary(self) -> tuple[int, ...]:
        prompt = self._running().tokenizer.encode(_CANARY)
        if cost_tokens(len(prompt), _CANARY_TOKENS) > self._limit_tokens:
            return ()
        return tuple(await self._run_raw(prompt, _CANARY_TOKENS))

    def steps(self) -> int:
        return int(getattr(self._manager, "current_batch", 0)) if self._manager is not None else 0

    def load(self) -> EngineLoad:
        if self._manager is None or self._loaded is None or self._speedometer is None:
            return EngineLoad()
        from worker.engines.transformers_batching import waiting_of

        speeds = self._speedometer.speeds()
        return EngineLoad(
            used_tokens=max(0, self._limit_tokens - self.free_tokens()),
            waiting=waiting_of(self._manager),
            busy_s=round(self._speedometer.busy_s, 3),
            weight=speeds.decode,
            prefill_weight=speeds.prefill,
        )

    def kill(self) -> None:
        """It runs in a process that its worker can end."""

    async def close(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            await asyncio.to_thread(manager.stop, block=True, timeout=10.0, hard_stop=True)
            reservation.withdraw("host", os.getpid())
        self._loaded = None

    def free_tokens(self) -> int:
        """KV tokens that no request holds now, as the library's own cache counts them."""
        cache = self._manager.batch_processor.cache
        return int(cache.compute_free_capacity(relative=False) // self._running().kv_bytes_per_token)

    def _load(self) -> tuple[LoadedModel, str]:
        import torch

        from worker.engines.transformers_batching import make_manager, quiet

        quiet()
        device = pick_device(self._settings.device)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
        loaded = load(self._settings, device, self._tell)
        self._tell("making the KV cache")
        self._manager = make_manager(self._settings, loaded, device.type, self._stepped)
        return loaded, str(device)

    def _stepped(self, decoding: int, prefilled: int, took_s: float) -> None:
        if self._speedometer is not None:
            self._speedometer.stepped(decoding, prefilled, took_s)

    def _tell(self, what: str) -> None:
        self.progress = what

    async def _measure(self, slots: int) -> float:
        """Tokens a second with a few requests at once; the first round warms up."""
        first = next(iter(self._eos), 0)
        await self._run_raw([first], 2)
        together, each = min(_MEASURED_SEQUENCES, slots), 16
        if self._limit_tokens < together * cost_tokens(together, each):
            together = 1
        began = time.monotonic()
        await asyncio.gather(*(self._run_raw([first] * (i + 1), each) for i in range(together)))
        return together * each / (time.monotonic() - began)

    async def _run_raw(self, prompt: list[int], max_tokens: int) -> list[int]:
        name = f"probe/{next(self._names)}"
        call = self._submit(name, prompt, max_tokens, {}, [])
        try:
            while not call.finished:
                await call.more.wait()
                call.more.clear()
        finally:
            self._forget(name, call)
        if call.error is not None or not call.ids:
            raise self._failure(call)
        return call.ids

    def _running(self) -> LoadedModel:
        if self._loaded is None or self._manager is None:
            raise EngineDead("the engine is not started")
        return self._loaded

    def _submit(self, name: str, ids: list[int], max_tokens: int, chosen: dict[str, Any], eos: list[int]) -> _Open:
        call = _Open()
        self._manager.register_result_handler(name, call.heard)
        if self._manager.add_request(ids, name, max_tokens, True, False, eos or -1, **chosen) is None:
            self._forget(name, call)
            raise self._failure(call)
        return call

    def _forget(self, name: str, call: _Open) -> None:
        """Free what the request holds and hear no more of it."""
        if self._manager is None or call.finished:
            return
        self._manager.cancel_request(name)
        router = self._manager.output_router
        with router._lock:
            router.result_handlers.pop(name, None)

    def _failure(self, call: _Open) -> EngineError | EngineDead:
        if self._manager is None:
            return EngineDead("the engine was closed")
        from worker.engines.transformers_batching import why_stopped

        if (why := why_stopped(self._manager)) is not None:
            return EngineDead(f"the library's generation loop has ended: {why}")
        return EngineError(
            "engine_error", f"The library gave up on the request: {call.error or 'it said no reason'}", retryable=True
        )

    def _prompt(self, request: InferenceRequest) -> tuple[int, ...]:
        if request.prompt_token_ids:
            return request.prompt_token_ids
        tokenizer = self._running().tokenizer
        if request.kind is InputKind.CHAT:
            try:
                text = tokenizer.apply_chat_template(list(request.messages), tokenize=False, add_generation_prompt=True)
            except (TemplateError, ValueError) as error:
                raise EngineError(
                    "invalid_request", f"The model's chat template refused the messages: {error}", retryable=False
                ) from error
            return tuple(tokenizer.encode(text, add_special_tokens=False))
        if request.kind is InputKind.COMPLETION:
            return tuple(tokenizer.encode(request.prompt))
        raise EngineError("unsupported", f"This engine generates text; it takes no {request.kind.value} input.", retryable=False)

    def _check_fits(self, prompt: int, max_tokens: int) -> None:
        context = self._running().context_tokens
        if prompt < 1 or max_tokens < 1:
            raise EngineError("invalid_request", "The prompt and max_tokens must be at least one token long.", retryable=False)
        if prompt + max_tokens > context:
            raise EngineError(
                "context_length_exceeded",
                f"The prompt has {prompt} tokens and {max_tokens} may be generated; together at most {context} fit this model.",
                retryable=False,
            )
        if cost_tokens(prompt, max_tokens) > self._limit_tokens:
            raise EngineError(
                "unschedulable",
                f"The request needs {cost_tokens(prompt, max_tokens)} KV tokens; this engine has {self._limit_tokens}.",
                retryable=False,
            )

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._running().tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True))


def _seed(tokens_per_s: float, device: str, wanted: float | None) -> Speeds:
    """What is taken for its speeds with 32 sequences, from what a few made: a GPU's step is hardly longer with more."""
    decode = wanted or tokens_per_s * (1.0 if device == "cpu" else BUSY_SEQUENCES / _MEASURED_SEQUENCES)
    return Speeds(decode, _PREFILL_FACTOR * tokens_per_s)
