"""The official client, 64 chats at once on the demo model: all complete, each text equal to the same chat alone."""

import asyncio

import openai

from tests.system.house import house

TOPICS = ("a river", "a turbine", "the queue", "a gate", "rain", "a valley", "the night shift", "a bridge")


async def _chat(client: openai.AsyncOpenAI, n: int) -> tuple[str, str]:
    stream = await client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": f"Tell me about {TOPICS[n % len(TOPICS)]}, please. ({n})"}],
        max_tokens=48,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, reason, tokens = "", "", 0
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    assert tokens > 0
    return text, reason


async def test_64_streamed_chats_equal_the_same_alone() -> None:
    with house() as home:
        gateway = home.gateway()
        home.worker("--model", "demo")
        home.until_ready(gateway, 1)
        async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0, timeout=90) as client:
            together = await asyncio.gather(*(_chat(client, n) for n in range(64)))
            assert all(reason in ("stop", "length") for _, reason in together)
            assert all(text.strip() for text, _ in together)
            for n in range(64):
                assert await _chat(client, n) == together[n]
