"""The real engine, killed in the middle of greedy streams: the worker's next one goes on with the same text."""

import os
import signal

import pytest

from dispatch.records import RequestRecord
from dispatch.rules import QueueRules
from dispatch.states import RequestState
from tests.worker.conftest import Client
from tests.worker.test_dead_engines import child_of
from tests.worker.test_worker import working

STREAMS = 16


@pytest.fixture
def rules() -> QueueRules:
    return QueueRules()


@pytest.mark.parametrize("server", ["valkey"], indirect=True)  # once is enough: a start of the engine takes seconds
async def test_greedy_texts_are_those_of_an_uninterrupted_run(server_url: str, rules: QueueRules, client: Client) -> None:
    numbers = {"engine": "transformers", "model": "demo", "device": "cpu", "dtype": "float32", "heartbeat_s": 0.5}
    prompts = [f"Tell me of the river, part {i}" for i in range(STREAMS)]

    async def ask_all() -> list[str]:
        return [await client.ask(prompt, 150, temperature=0.0) for prompt in prompts]

    async def said(requests: list[str]) -> list[tuple[str, tuple[int, ...]]]:
        for request in requests:
            assert await client.ended(request, 60) is RequestState.COMPLETED
        return [(await client.answer(request))[:2] for request in requests]

    async def record_of(request: str) -> RequestRecord:
        record = await client.queue.record(request)
        assert record is not None
        return record

    async with working(server_url, rules, **numbers) as worker:
        whole = await said(await ask_all())
        requests = await ask_all()
        for request in requests:
            await client.wrote(request, 2)
        os.kill(child_of(worker), signal.SIGKILL)
        assert await said(requests) == whole
        records = [await record_of(request) for request in requests]
    assert {(r.attempt, r.charged, r.crashes) for r in records if r.attempt > 1} == {(2, 1, 0)}
