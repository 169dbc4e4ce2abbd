"""What is asked for, for whoever decides how many workers there should be: the backlog's cost, how long first outputs took.

Never here: a write, a decision.
"""

from dispatch.looking import POSITION_SCAN, Looking
from dispatch.states import ENDINGS, Priority


class Demand(Looking):
    """The queue as the autoscaler reads it."""

    async def backlog(self, model: str, scan: int = POSITION_SCAN) -> tuple[int, int]:
        """How many wait and what they cost together (tokens). Of a long line the first `scan` tell what the rest costs."""
        lines = [line for priority in Priority for line in self._keys.lines(model, priority)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for line in lines:
                pipe.xlen(line)
                pipe.xrange(line, count=scan)
            found = await pipe.execute()
        requests, tokens = 0, 0
        for length, entries in zip(found[::2], found[1::2], strict=True):
            costs = [int(fields[b"cost"]) for _, fields in entries if fields.get(b"cost", b"").isdigit()]
            requests += length
            tokens += sum(costs) * length // len(costs) if costs else 0
        return requests, tokens

    async def prompt_share(self, model: str, *, sample: int = 20, most: int = 100) -> float | None:
        """The part of prompts in the cost of the newest requests; None if none of the newest `most` is the model's."""
        prompts, costs, looked, found = 0, 0, 0, 0
        async for record in self.list_requests():
            looked += 1
            if record.model == model and record.cost_tokens > 0:
                found += 1
                prompts += min(record.prompt_tokens, record.cost_tokens)
                costs += record.cost_tokens
            if looked >= most or found >= sample:
                break
        return prompts / costs if costs else None

    async def first_outputs(self, model: str, *, within_ms: int, most: int = 200) -> list[int]:
        """How long the newest requests of the last `within_ms` waited for their first output, or wait for it still (ms)."""
        time = await self._redis.time()
        now_ms = time[0] * 1000 + time[1] // 1000
        waits: list[int] = []
        async for record in self.list_requests():
            if record.created_at_ms < now_ms - within_ms or len(waits) >= most:
                break
            if record.model != model or (record.state in ENDINGS and not record.first_output_at_ms):
                continue
            waits.append((record.first_output_at_ms or now_ms) - record.created_at_ms)
        return waits
