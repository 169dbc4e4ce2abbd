"""The sim engine with the time for its text: when it was asked, and when it said each token, by the machine's monotonic clock.

`python -m bench.streaming.stamping worker ...` is `penstock worker ...` whose engine `sim` is this one. What a client reads
tells how long each token was on its way. Never here: clients.
"""

import dataclasses
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import cast

from dispatch.messages import InferenceRequest
from penstock.cli import main
from worker.engines.base import Chunk
from worker.engines.registry import ENGINES
from worker.engines.sim import SimEngine


class StampingEngine(SimEngine):
    """`!ns!` for the moment it was asked, then `@ns@` for each token."""

    async def generate(self, request: InferenceRequest, done: Sequence[int]) -> AsyncIterator[Chunk]:
        said = f"!{time.monotonic_ns()}!"
        async for chunk in super().generate(request, done):
            yield dataclasses.replace(chunk, text=said + f"@{time.monotonic_ns()}@" * len(chunk.tokens))
            said = ""


if __name__ == "__main__":
    cast(dict[str, str], ENGINES)["sim"] = "bench.streaming.stamping:StampingEngine"
    sys.exit(main())
