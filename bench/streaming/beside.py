"""Penstock beside `transformers serve --continuous-batching`: the same model, the same engine settings, the same load, in turns.

The model has random weights and the demo's tokenizer; answers are greedy and never end by themselves. Both servers stand all the
time, with the same threads; only one is asked at a time. Never here: what is made of the figures.
"""

import asyncio
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.stand import Stand, cpu_s_of, stand
from bench.streaming.listening import open_stream
from dispatch.tasks import cancelled
from tests.ports import free_port
from worker.engines.transformers_loading import DEMO_FOLDER

STREAMS = 32
_NEW_TOKENS = (24, 32, 40, 48, 56)
"""In turns, so that the streams do not stay in step: the mean is 40."""
_KV_TOKENS, _PAGE_TOKENS, _BATCH_TOKENS = 8192, 16, 256
_SEED = 7
_STARVED = 3.0
_PATIENCE, _AFTER_BREAK_S = 2.0, 6.0
"""A server that is starved may take minutes for what it has begun: then that is broken off, and computed for 5 s at most."""


@dataclass(frozen=True)
class Round:
    """One server's figures of one round."""

    tokens_per_s: float
    first_p50_ms: float
    first_p99_ms: float
    requests: int
    cpu_us: dict[str, float]
    """CPU a token, by process."""


@dataclass
class _Answer:
    """One request: when what came, by characters; how many tokens it was in the end."""

    sent_at: float
    came: list[tuple[float, int]] = field(default_factory=list)
    text: str = ""
    tokens: int = 0

    def __call__(self, frames: bytes) -> None:
        now = time.perf_counter()
        for line in frames.split(b"\n"):
            if not line.startswith(b"data: {"):
                continue
            told = json.loads(line[6:])
            if "error" in told:
                raise RuntimeError(str(told["error"]))
            text = "".join(choice.get("text") or "" for choice in told["choices"])
            if text:
                self.came.append((now, len(text)))
                self.text += text
            if told.get("usage"):
                self.tokens = told["usage"]["completion_tokens"]


@dataclass(frozen=True)
class Server:
    """Who is asked, and its processes."""

    name: str
    port: int
    body: dict[str, Any]
    pids: dict[str, int]

    def asked(self, prompt: str, tokens: int) -> dict[str, Any]:
        """A greedy completion of so many tokens."""
        body = {**self.body, "prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0}
        if self.name == SERVE:
            never_ends = {"max_new_tokens": tokens, "eos_token_id": -1, "do_sample": False}
            return {**body, "generation_config": json.dumps(never_ends)}
        return {**body, "ignore_eos": True, "stream_options": {"include_usage": True}}


OURS, SERVE = "penstock", "transformers serve"


def make_model(folder: Path, layers: int = 12, hidden: int = 640) -> float:
    """A Llama with random weights and the demo's tokenizer; returns its millions of parameters."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(_SEED)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO_FOLDER / name, folder)
    return sum(p.numel() for p in model.parameters()) / 1e6


async def measure(server: str, rounds: int, seconds: float) -> tuple[float, list[tuple[Round, Round]]]:
    """Millions of parameters, and of each round ours and theirs."""
    with stand(server) as s, tempfile.TemporaryDirectory(prefix="penstock-model-") as folder:
        millions = make_model(Path(folder))
        ours, theirs = _start(s, folder)
        prompts = (f"{n} is the number of this stream, and the water goes on and on to the sea" for n in itertools.count(1000))
        await _same_answer(ours, theirs)
        for each in (ours, theirs):
            await _round(each, itertools.islice(prompts, 10_000), 1.0)
        found = []
        for number in range(rounds):
            pair = (ours, theirs) if number % 2 == 0 else (theirs, ours)  # who begins takes turns, too
            told = {each.name: await _round(each, prompts, seconds) for each in pair}
            found.append((told[OURS], told[SERVE]))
            print(f"beside, round {number + 1}: {told[OURS]} {told[SERVE]}", file=sys.stderr, flush=True)
        return millions, found


def fed(rounds: Sequence[tuple[Round, Round]]) -> list[tuple[Round, Round]]:
    """Those in which both had the machine: a server far below its own best was starved by something else, and tells nothing."""
    best = [max(pair[side].tokens_per_s for pair in rounds) for side in (0, 1)]
    return [pair for pair in rounds if all(pair[side].tokens_per_s > best[side] / _STARVED for side in (0, 1))]


def ratios(rounds: Sequence[tuple[Round, Round]]) -> tuple[float, float, float]:
    """Ours of theirs: tokens/s and time to first token, medians of the rounds' ratios; tokens/s, best round of best round."""
    counted = fed(rounds)
    if not counted:
        return math.nan, math.nan, math.nan
    return (
        median(ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in counted),
        median(ours.first_p50_ms / theirs.first_p50_ms for ours, theirs in counted),
        max(ours.tokens_per_s for ours, _ in counted) / max(theirs.tokens_per_s for _, theirs in counted),
    )


def _start(s: Stand, folder: str) -> tuple[Server, Server]:
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), "HF_HUB_OFFLINE": "1"}
    gate, serve = free_port(), free_port()
    theirs = s.role(
        str(Path(sys.executable).with_name("transformers")), "serve", folder, "--continuous-batching", "--device", "cpu",
        "--host", "127.0.0.1", "--port", str(serve), "--cb-num-blocks", str(_KV_TOKENS // _PAGE_TOKENS),
        "--cb-block-size", str(_PAGE_TOKENS), "--cb-max-batch-tokens", str(_BATCH_TOKENS), "--log-level", "error", **threads,
    )  # fmt: skip
    s.until_answers(f"http://127.0.0.1:{serve}/health")
    gateway = s.penstock("gateway", "--port", str(gate))
    worker = s.penstock(
        "worker", "--engine", "transformers", "--model", folder,
        PENSTOCK_WORKER__SERVED_NAME="bench", PENSTOCK_WORKER__KV_TOKENS=str(_KV_TOKENS), PENSTOCK_WORKER__DEVICE="cpu",
        **threads,
    )  # fmt: skip
    s.until_answers(f"http://127.0.0.1:{gate}/v1/models/bench")
    s.until_ready(str(gate))
    assert s.server is not None
    pids = {"Redis": s.server.pid, "gateway": gateway.pid, "worker and engine": worker.pid}
    return Server(OURS, gate, {"model": "bench"}, pids), Server(SERVE, serve, {"model": folder}, {"server": theirs.pid})


async def _same_answer(*servers: Server) -> None:
    """The same engine on the same model: anything else would be no comparison."""
    said: list[_Answer] = []
    for server in servers:
        await _ask(server, "The water", 40, said)
    assert len({(answer.text, answer.tokens) for answer in said}) == 1, [(a.text, a.tokens) for a in said]


async def _ask(server: Server, prompt: str, tokens: int, answers: list[_Answer]) -> None:
    answer = _Answer(time.perf_counter())
    answers.append(answer)
    stream = await open_stream(server.port, "/v1/completions", server.asked(prompt, tokens), answer)
    try:
        await stream.ended
    finally:
        stream.close()
    assert answer.tokens == tokens, f"{server.name} gave {answer.tokens} of {tokens} tokens: {answer.text!r}"


async def _round(server: Server, prompts: Any, seconds: float) -> Round:
    """A closed loop. What came in the last four fifths of the time counts; what was begun is heard to its end."""
    answers: list[_Answer] = []
    began = time.perf_counter()
    counting_from, until = began + seconds / 5, began + seconds
    used: dict[str, float] = {}

    async def keep_one_open(n: int) -> None:
        lengths = itertools.islice(itertools.cycle(_NEW_TOKENS), n % len(_NEW_TOKENS), None)
        while time.perf_counter() < until:
            await _ask(server, next(prompts), next(lengths), answers)

    async def count_cpu() -> None:
        await asyncio.sleep(counting_from - time.perf_counter())
        before = {name: cpu_s_of(pid) for name, pid in server.pids.items()}
        await asyncio.sleep(until - time.perf_counter())
        used.update({name: cpu_s_of(pid) - before[name] for name, pid in server.pids.items()})

    counting = asyncio.create_task(count_cpu())
    streams = [asyncio.create_task(keep_one_open(n)) for n in range(STREAMS)]
    _, late = await asyncio.wait(streams, timeout=_PATIENCE * seconds + 10.0)
    await cancelled(*late)
    await asyncio.gather(counting, *(stream for stream in streams if stream not in late))
    if late:  # what was broken off is computed for a little longer
        await asyncio.sleep(_AFTER_BREAK_S)
    whole = [answer for answer in answers if answer.tokens]
    # Random weights may say nothing that can be seen; a server that does not stream says nothing at all.
    silent = sum(not answer.came for answer in whole)
    assert silent <= len(whole) / 10, f"{server.name} streamed nothing in {silent} of {len(whole)} answers"
    # How many characters a token is; of what was broken off as of the others.
    each = sum(len(a.text) for a in whole) / sum(a.tokens for a in whole) if whole else 1.0
    tokens = sum(
        characters / (len(answer.text) / answer.tokens if answer.tokens else each)
        for answer in answers
        for at, characters in answer.came
        if counting_from <= at < until
    )
    # The first ones were all sent at once; where a round is so slow that there are no others, they are what there is.
    later = [a for a in answers if a.sent_at >= counting_from and a.came] or answers
    firsts = sorted(((a.came[0][0] if a.came else time.perf_counter()) - a.sent_at) * 1000 for a in later)
    return Round(
        tokens / (until - counting_from),
        firsts[len(firsts) // 2],
        firsts[len(firsts) * 99 // 100],
        len(answers),
        {name: cpu_s * 1e6 / tokens if tokens else 0.0 for name, cpu_s in used.items()},
    )
