"""A transformers worker is killed in the middle of 16 greedy streams: the official client sees whole texts and no error."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Sequence

import openai

from tests.system.house import House, Role, house

STREAMS, TOKENS = 16, 300
SAID = 5
"""Pieces of an answer that are there when its worker is killed."""


class Talk:
    """One streamed chat, and what its client has of it."""

    def __init__(self, client: openai.AsyncOpenAI, n: int) -> None:
        self._client, self._n = client, n
        self.text, self.attempts = "", 0

    async def listen(self) -> str:
        stream = await self._client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": f"Tell me story number {self._n} of the river."}],
            max_tokens=TOKENS,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            for choice in chunk.choices:
                self.text += choice.delta.content or ""
            if chunk.usage:
                assert chunk.usage.completion_tokens == TOKENS
                self.attempts = (chunk.usage.model_extra or {}).get("penstock", {}).get("attempts", 1)
        return self.text


async def in_the_middle(home: House, gateway: Role, worker: str | None = None) -> Sequence[str]:
    """The requests that a worker (None: the one with most of them) is in the middle of: some of each was said, and not all."""
    running = (await asyncio.to_thread(home.get, gateway, "/v1/requests?status=running&limit=100"))["data"]
    begun = [(r["worker"], r["id"]) for r in running if r["seq"] >= SAID]
    if worker is None and begun:
        worker = Counter(holder for holder, _ in begun).most_common(1)[0][0]
    return [request for holder, request in begun if holder == worker]


async def strike(home: House, gateway: Role, ended: Callable[[], bool]) -> Sequence[str]:
    """Kill a worker in the middle of some streams; which ones. It is stopped first: what it holds then stays so."""
    roles = {role.process.pid: role for role in home.roles}
    processes = {w["id"]: roles[w["pid"]].process for w in (await asyncio.to_thread(home.get, gateway, "/v1/workers"))["data"]}
    while not ended():
        if not (found := await in_the_middle(home, gateway)):
            await asyncio.sleep(0.005)
            continue
        worker = (await asyncio.to_thread(home.get, gateway, f"/v1/requests/{found[0]}"))["worker"]
        process = processes[worker]
        process.send_signal(signal.SIGSTOP)
        if held := await in_the_middle(home, gateway, worker):
            process.kill()
            process.wait()
            return held
        process.send_signal(signal.SIGCONT)
    raise AssertionError("every stream ended before a worker was seen in the middle of one")


async def test_16_greedy_streams_survive_their_workers_death() -> None:
    with house() as home:
        short = {"PENSTOCK_QUEUE__LEASE_S": "2"}
        gateway = home.gateway(**short)
        for _ in range(2):
            home.worker("--model", "demo", **short)
        home.until_ready(gateway, 2)
        async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0, timeout=90) as client:
            whole = [Talk(client, n) for n in range(STREAMS)]
            await asyncio.gather(*(talk.listen() for talk in whole))
            assert all(talk.attempts == 1 for talk in whole)

            struck = [Talk(client, n) for n in range(STREAMS)]
            streams = asyncio.gather(*(talk.listen() for talk in struck))
            held = await strike(home, gateway, streams.done)
            await streams
        assert [talk.text for talk in struck] == [talk.text for talk in whole]
        moved = [home.get(gateway, f"/v1/requests/{request}")["attempt"] for request in held]
        assert min(moved) > 1, "what the killed worker held went on elsewhere"
        assert sum(talk.attempts > 1 for talk in struck) >= len(held)
