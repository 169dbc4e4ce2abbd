"""Seeded clients: each does one thing after another, as badly behaved as real ones are.

Never here: faults of our own processes (nemesis.py), the wire (wire.py).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx2 as httpx

from chaos.asks import Answers, Ask, choose, slow_ask
from chaos.history import Recorder
from chaos.wire import TIMEOUTS, Heard, Leave, Wire

_ENDED = frozenset({"completed", "failed", "cancelled", "expired", "unknown"})
_PATIENCE_S = 150.0
DEADLINE_S = 240.0
"""Long enough that only a starved request meets it."""


def stay(_: int) -> float | None:
    """Read on at once."""
    return 0.0


def leave_after(events: int) -> Leave:
    """Leave after so many events of the request."""
    return lambda heard: None if heard >= events else 0.0


class Client:
    """One client."""

    def __init__(self, wire: Wire, record: Recorder, answers: Answers, demo: Sequence[Ask], *, poison: float) -> None:
        self._wire = wire
        self._rng = wire.rng
        self._record = record
        self._answers = answers
        self._demo = demo
        self._poison = poison
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask nothing more; what is under way is read to its end."""
        self._stopping.set()

    async def run(self) -> None:
        """Ask until stopped."""
        kinds = list(_KINDS)
        weights = [weight for _, weight in _KINDS.values()]
        while not self._stopping.is_set():
            ask = choose(self._rng, self._demo, poison=self._poison)
            self._know(ask)
            name = "detached" if ask.is_fault else self._rng.choices(kinds, weights)[0]
            work, _ = _KINDS[name]
            await work(self, ask)
            await asyncio.sleep(self._rng.random() * 0.3)

    # ---- kinds

    async def stream(self, ask: Ask) -> None:
        """Submit, stream to the end, go on wherever a connection breaks."""
        request = await self._submit(ask, "stream")
        if request:
            await self._read_to_end(request)

    async def hop(self, ask: Ask) -> None:
        """Stream a few events at a time, each time at any gateway."""
        request = await self._submit(ask, "hop")
        if not request:
            return
        heard = Heard()
        for _ in range(4):
            if heard.ended or heard.gone:
                break
            await self._wire.follow(request, heard, leave_after(heard.events + self._rng.randint(1, 12)))
        await self._read_to_end(request, heard)

    async def slow(self, ask: Ask) -> None:
        """Read slowly, then hurry."""
        request = await self._submit(ask, "slow")
        if request:
            pauses = self._rng.randint(3, 10)
            await self._read_to_end(request, leave=lambda heard: 0.3 if heard < pauses else 0.0)

    async def detached(self, ask: Ask) -> None:
        """Submit and poll; read the log only when all is over."""
        request = await self._submit(ask, "detached")
        if request:
            await self._poll(request)
            await self._wire.result(request)
            if self._rng.random() < 0.5:
                await self._read_to_end(request)

    async def twice(self, ask: Ask) -> None:
        """The same submit several times under one key, at once and later."""
        key = f"key-{self._rng.getrandbits(64):x}"
        terms = self._terms()
        replies = await asyncio.gather(*(self._wire.submit(ask, "twice", key, terms) for _ in range(self._rng.randint(2, 3))))
        await asyncio.sleep(self._rng.random() * 2)
        _, last = await self._wire.submit(ask, "twice", key, terms)
        request = next((r for _, r in replies if r), last)
        if request:
            await self._read_to_end(request)

    async def cancelling(self, ask: Ask) -> None:
        """Cancel at a random moment, and look at what remains of it."""
        request = await self._submit(ask, "cancel")
        if not request:
            return
        heard = Heard()
        if self._rng.random() < 0.6:
            await self._wire.follow(request, heard, leave_after(self._rng.randint(1, 30)))
        else:
            await asyncio.sleep(self._rng.random() * 2)
        await self._until(lambda: self._wire.cancel(request))
        await self._wire.look(request)
        await self._read_to_end(request, heard)

    async def deadline(self, ask: Ask) -> None:
        """A deadline that may well pass."""
        request = await self._submit(ask, "deadline", deadline_seconds=round(0.3 + self._rng.random() * 3, 2))
        if request:
            await self._read_to_end(request)

    async def openai(self, ask: Ask) -> None:
        """A streamed chat or completion, as the official client does it."""
        await self._wire.openai(ask, self._headers(), stay)

    async def openai_whole(self, ask: Ask) -> None:
        """One answer in one piece."""
        await self._wire.openai_whole(ask, self._headers())

    async def vanish(self, ask: Ask) -> None:
        """A streamed chat whose client is gone before its end."""
        if self._rng.random() < 10 * self._poison:
            ask = slow_ask(self._rng)
            self._know(ask)
        await self._wire.openai(ask, self._headers(), leave_after(self._rng.randint(1, 25)))

    # ---- steps

    def _know(self, ask: Ask) -> None:
        news = self._answers.news(ask)
        if news is not None:
            text, tokens, reason = news
            self._record("reference", ask=ask.key, text=text, tokens=tokens, finish_reason=reason)

    def _terms(self, **more: Any) -> dict[str, Any]:
        priority = self._rng.choice(("high", "normal", "normal", "low"))
        return {"priority": priority, "deadline_seconds": DEADLINE_S, "on_disconnect": "continue", **more}

    def _headers(self) -> dict[str, str]:
        return {"x-request-timeout": f"{DEADLINE_S:g}", "x-penstock-priority": self._rng.choice(("high", "normal", "low"))}

    async def _submit(self, ask: Ask, kind: str, **terms: Any) -> str:
        """Submit, again with the same key while there is no good answer. "" when nothing came of it."""
        # Without a key an unanswered submit must not be repeated: it may have been stored.
        # What breaks an engine is always named: the checker must know whom it was granted to.
        key = f"key-{self._rng.getrandbits(64):x}" if ask.is_fault or self._rng.random() < 0.7 else ""
        terms = self._terms(**terms, **({"max_attempts": 3} if ask.is_fault else {}))
        for n in range(12 if key else 1):
            status, request = await self._wire.submit(ask, kind, key, terms)
            if request or status in (400, 404, 422):
                return request
            await asyncio.sleep(min(0.3 * 2**n, 2.0) * (0.5 + self._rng.random()))
        return ""

    async def _read_to_end(self, request: str, heard: Heard | None = None, leave: Leave = stay) -> None:
        heard = heard or Heard()
        give_up_at = time.monotonic() + _PATIENCE_S
        while not (heard.ended or heard.gone) and time.monotonic() < give_up_at:
            await self._wire.follow(request, heard, leave)
            if not heard.ended:
                await asyncio.sleep(0.2 + self._rng.random() * 0.5)

    async def _poll(self, request: str) -> None:
        give_up_at = time.monotonic() + _PATIENCE_S
        while time.monotonic() < give_up_at and await self._wire.look(request, wait_s=2) not in _ENDED:
            await asyncio.sleep(0.1 + self._rng.random() * 0.5)

    async def _until(self, done: Callable[[], Awaitable[bool]]) -> None:
        give_up_at = time.monotonic() + 30
        while not await done() and time.monotonic() < give_up_at:
            await asyncio.sleep(0.3)


_Kind = Callable[[Client, Ask], Awaitable[None]]
# kind -> how it is done, how often
_KINDS: Mapping[str, tuple[_Kind, int]] = {
    "stream": (Client.stream, 5),
    "hop": (Client.hop, 3),
    "slow": (Client.slow, 1),
    "detached": (Client.detached, 3),
    "twice": (Client.twice, 2),
    "cancel": (Client.cancelling, 3),
    "deadline": (Client.deadline, 1),
    "openai": (Client.openai, 4),
    "openai-whole": (Client.openai_whole, 2),
    "vanish": (Client.vanish, 2),
}


class Load:
    """All clients of a run."""

    def __init__(
        self, count: int, seed: int, gateways: Sequence[str], record: Recorder, demo: Sequence[Ask], *, poison: float
    ) -> None:
        self._http = httpx.AsyncClient(timeout=TIMEOUTS, limits=httpx.Limits(max_connections=None, max_keepalive_connections=32))
        answers = Answers()
        self._clients = [
            Client(
                Wire(f"c{n}", self._http, gateways, random.Random(f"{seed} client {n}"), record),
                record,
                answers,
                demo,
                poison=poison,
            )
            for n in range(count)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(client.run()) for client in self._clients]

    async def stop(self, patience_s: float) -> int:
        """No new asks; wait for those under way. Returns how many clients did not come to an end."""
        for client in self._clients:
            client.stop()
        _, pending = await asyncio.wait(self._tasks, timeout=patience_s)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in self._tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error  # a bug of the harness, not of what it tests
        await self._http.aclose()
        return len(pending)
