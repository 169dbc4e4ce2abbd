"""The time that all between engine and client adds to the first token and to each: a `sim` engine that stamps, a closed loop."""

import asyncio
import re
import sys
import time
from dataclasses import dataclass, field

from bench.stand import Stand, stand
from bench.streaming.listening import open_stream
from penstock.simulator.report import quantile
from tests.ports import free_port

_TOKENS = 64
_ASKED, _SAID = re.compile(rb"!(\d+)!"), re.compile(rb"@(\d+)@")


@dataclass(frozen=True)
class Added:
    """Medians and 99th percentiles in ms: from submit until the engine is asked, and of a token from the engine to the client."""

    streams: int
    tokens_per_s: float
    to_engine_ms: tuple[float, float]
    first_ms: tuple[float, float]
    """To the engine and, of the first token, back."""
    each_ms: tuple[float, float]
    gateway_us: float
    worker_us: float
    redis_us: float
    """CPU a token."""


@dataclass
class _Heard:
    """One request's stamps."""

    sent_at: int
    asked_at: int = 0
    spans: list[int] = field(default_factory=list)

    def __call__(self, frames: bytes) -> None:
        now = time.monotonic_ns()
        if not self.asked_at and (asked := _ASKED.search(frames)):
            self.asked_at = int(asked[1])
        self.spans += [now - int(said) for said in _SAID.findall(frames)]


async def measure(server: str, streams: list[int], seconds: float) -> list[Added]:
    """Each number of streams for that long, on one gateway and one worker."""
    with stand(server) as s:
        port = str(free_port())
        s.penstock("gateway", "--port", port)
        s.role(
            sys.executable, "-m", "bench.streaming.stamping", "worker", "--engine", "sim", "--gpu", "H100", "--model", "demo",
            "--redis", s.redis_url,
        )  # fmt: skip
        s.until_answers(f"http://127.0.0.1:{port}/v1/models/demo")
        s.until_ready(port)
        await _loop(int(port), 4, 0.5)
        return [await _one(s, int(port), n, seconds) for n in streams]


async def _one(s: Stand, port: int, streams: int, seconds: float) -> Added:
    before = s.cpu_s()
    began = time.monotonic()
    heard = await _loop(port, streams, seconds)
    took_s = time.monotonic() - began
    tokens = sum(len(h.spans) for h in heard)
    redis_us, gateway_us, worker_us = ((a - b) * 1e6 / tokens for a, b in zip(s.cpu_s(), before, strict=True))
    return Added(
        streams,
        tokens / took_s,
        _told([h.asked_at - h.sent_at for h in heard]),
        _told([h.asked_at - h.sent_at + h.spans[0] for h in heard]),
        _told([span for h in heard for span in h.spans]),
        gateway_us,
        worker_us,
        redis_us,
    )


async def _loop(port: int, streams: int, seconds: float) -> list[_Heard]:
    found: list[_Heard] = []
    until = time.monotonic() + seconds

    async def keep_one_open(n: int) -> None:
        await asyncio.sleep(n / streams * 0.3)  # else all stay in step
        while time.monotonic() < until:
            heard = _Heard(time.monotonic_ns())
            body: dict[str, object] = {
                "model": "demo",
                "messages": [{"role": "user", "content": f"Stream {n}"}],
                "max_tokens": _TOKENS,
                "ignore_eos": True,
                "stream": True,
            }
            stream = await open_stream(port, "/v1/chat/completions", body, heard)
            await stream.ended
            assert len(heard.spans) == _TOKENS, f"{len(heard.spans)} of {_TOKENS} tokens came"
            found.append(heard)

    await asyncio.gather(*(keep_one_open(n) for n in range(streams)))
    return found


def _told(spans_ns: list[int]) -> tuple[float, float]:
    spans_ns.sort()
    return quantile(spans_ns, 0.5) / 1e6, quantile(spans_ns, 0.99) / 1e6
