"""A transformers worker is killed in the middle of 16 greedy streams: the official client sees whole texts and no error."""

import asyncio

import openai

from tests.system.house import house

STREAMS, TOKENS = 16, 300


class Talk:
    """One streamed chat, and what its client has of it."""

    def __init__(self, client: openai.AsyncOpenAI, n: int) -> None:
        self._client, self._n = client, n
        self.text, self.chunks, self.attempts = "", 0, 0

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
                self.chunks += 1
            if chunk.usage:
                assert chunk.usage.completion_tokens == TOKENS
                self.attempts = (chunk.usage.model_extra or {}).get("penstock", {}).get("attempts", 1)
        return self.text


async def test_16_greedy_streams_survive_their_workers_death() -> None:
    with house() as home:
        short = {"PENSTOCK_QUEUE__LEASE_S": "2"}
        gateway = home.gateway(**short)
        workers = [home.worker("--model", "demo", **short) for _ in range(2)]
        home.until_ready(gateway, 2)
        async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0, timeout=90) as client:
            whole = [Talk(client, n) for n in range(STREAMS)]
            await asyncio.gather(*(talk.listen() for talk in whole))
            assert all(talk.attempts == 1 for talk in whole)

            struck = [Talk(client, n) for n in range(STREAMS)]
            streams = asyncio.gather(*(talk.listen() for talk in struck))
            while not streams.done() and min(talk.chunks for talk in struck) < 5:
                await asyncio.wait({streams}, timeout=0.005)
            assert not streams.done()
            workers[0].kill()
            await streams
        assert [talk.text for talk in struck] == [talk.text for talk in whole]
        assert sum(talk.attempts > 1 for talk in struck) >= 1, "the killed worker held some of them"
