"""The library's continuous batching as the engine wants it: pages, KV budget, slots, one choice of tokens a request.

Never here: requests and their text (transformers.py), loading (transformers_loading.py).
"""

import logging
import os
import queue
import time
from collections.abc import Callable
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.utils import is_flash_attn_2_available

from dispatch.errors import PenstockError
from dispatch.settings import WorkerSettings
from worker import reservation
from worker.engines import transformers_sampling
from worker.engines.transformers_loading import LoadedModel, available_ram_bytes

PAGE_TOKENS = 16
"""The page that `dispatch.pricing` rounds costs up to."""
_FLASH_PAGE_TOKENS = 256  # what flash attention's block tables ask for
_SLOTS = {"cpu": 64, "cuda": 128}
_CPU_BATCH_TOKENS = 256
_CPU_CONTEXTS = 16  # contexts the KV budget holds on a CPU, if a quarter of the free memory allows
_LIBRARY_LOG = logging.getLogger("ContinuousBatchingLogger")


Stepped = Callable[[int, int, float], None]
"""Sequences that decoded, prompt tokens read, seconds."""


class _Nowhere(queue.Queue[Any]):
    """Where a step under way says what it still has for a request that was closed."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Keep nothing."""


def quiet() -> None:
    """Keep the libraries to errors; while the cache is made not even those: a missing optional package is none."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    _LIBRARY_LOG.setLevel(logging.CRITICAL)


def make_manager(settings: WorkerSettings, loaded: LoadedModel, device: str, stepped: Stepped) -> Any:
    """A running manager; its KV cache is allocated here. `device`: cpu or cuda. `stepped` hears of each step, in its thread."""
    slots = settings.slots or _SLOTS[device]
    page = _FLASH_PAGE_TOKENS if device == "cuda" and is_flash_attn_2_available() else PAGE_TOKENS
    tokens = settings.kv_tokens
    if device == "cpu":
        # Its pages become this process's own only as they are filled: until then nobody else must count on them.
        with reservation.sizing_lock("host"):
            tokens = tokens or _cpu_kv_tokens(loaded)
            reservation.promise("host", os.getpid(), reservation.rss_bytes() + tokens * loaded.kv_bytes_per_token)
    config = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=None if tokens is None else -(-tokens // page) + _reserve_tokens(slots, page) // page,
        max_batch_tokens=batch_tokens(slots) if device == "cpu" else None,
        max_requests_per_batch=slots,
        # Shared blocks would outlive their requests, and the same prompt would be computed in different shapes.
        allow_block_sharing=False,
        # Only what fits is admitted; the library need not hold memory back from what was.
        safety_margin=0.0,
        # Its guess knows nothing of the processors that are installed below.
        max_memory_percent=0.8 if device == "cuda" else None,
    )
    generation = GenerationConfig(do_sample=False, eos_token_id=list(loaded.files.eos_token_ids) or -1)
    manager = loaded.model.init_continuous_batching(generation, config)
    transformers_sampling.install(manager)
    manager.output_router.output_queue = _Nowhere()
    try:
        manager.warmup()
    except (RuntimeError, MemoryError, ValueError) as error:
        raise PenstockError(
            "bad_setting",
            f"The model's KV cache could not be made: {(str(error).strip().splitlines() or [type(error).__name__])[0][:300]}",
            hint="Lower worker.kv_tokens or worker.slots, or free memory on the device.",
            param="worker.kv_tokens",
        ) from error
    _LIBRARY_LOG.setLevel(logging.ERROR)
    _watch_steps(manager, stepped)
    manager.start()
    return manager


def _watch_steps(manager: Any, stepped: Stepped) -> None:
    scheduler, step = manager.batch_processor.scheduler, manager._generation_loop_body
    schedule, batch = scheduler.schedule_batch, list[tuple[int, int]]()

    def scheduled(*budgets: Any) -> Any:
        found = schedule(*budgets)
        if found[0]:
            decoding = sum(future.query_length == 1 for future in found[0])
            batch.append((decoding, found[2] - decoding))
        return found

    def timed(*args: Any, **kwargs: Any) -> Any:
        batch.clear()
        began = time.monotonic()
        goes_on = step(*args, **kwargs)
        if batch:  # else it only waited for something to do
            stepped(*batch[-1], time.monotonic() - began)
        return goes_on

    scheduler.schedule_batch, manager._generation_loop_body = scheduled, timed


def waiting_of(manager: Any) -> int:
    """Requests that were not begun."""
    return len(manager.batch_processor.scheduler.waiting_requests) + int(manager.input_queue.qsize())


def slots_of(manager: Any) -> int:
    """How many requests may be in one step."""
    return int(manager.continuous_batching_config.max_requests_per_batch)


def capacity_tokens(manager: Any) -> int:
    """The sum of costs (in whole pages of PAGE_TOKENS) that always fits."""
    page = int(manager.continuous_batching_config.page_size)
    reserve = _reserve_tokens(slots_of(manager), page)
    return (int(manager.batch_processor.cache.num_blocks) * page - reserve) // PAGE_TOKENS * PAGE_TOKENS


def batch_tokens(slots: int) -> int:
    """Tokens that one step computes at most, on a CPU."""
    return max(_CPU_BATCH_TOKENS, slots)


def why_stopped(manager: Any) -> str | None:
    """Why the generation loop takes no more requests; None while it does."""
    status = manager.background_thread_status
    if status.can_accept_new_requests() is None:
        return None
    # The type alone: a message of the library could quote what the request said.
    return type(status.fatal_error).__name__ if status.fatal_error is not None else "it was stopped"


def _cpu_kv_tokens(loaded: LoadedModel) -> int:
    # The library also keeps one attention mask of batch x KV tokens.
    each = loaded.kv_bytes_per_token + _CPU_BATCH_TOKENS * int(loaded.model.dtype.itemsize)
    affordable = available_ram_bytes() // 4 // each
    return max(PAGE_TOKENS, min(_CPU_CONTEXTS * loaded.context_tokens, affordable) // PAGE_TOKENS * PAGE_TOKENS)


def _reserve_tokens(slots: int, page: int) -> int:
    """Tokens lost to half-empty pages at most, beyond the pages that costs are rounded up to."""
    return slots * (page - PAGE_TOKENS)
