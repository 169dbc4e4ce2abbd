"""A worker that is asked to drain takes nothing new, and takes again when that is taken back."""

import pytest

from dispatch.fleet import Fleet
from dispatch.rules import QueueRules
from dispatch.states import RequestState, WorkerState
from tests.worker.conftest import Client, until
from tests.worker.test_worker import rules, working

__all__ = ["rules"]


@pytest.mark.parametrize("by", ["worker", "launch"])
async def test_it_finishes_what_it_holds_and_can_be_kept(
    server_url: str, rules: QueueRules, client: Client, fleet: Fleet, by: str
) -> None:
    async with working(server_url, rules, sim_speed=1.0, launch="l-1") as worker:
        held = await client.ask("hold this", 60)
        await client.runs(held)
        name = worker.id if by == "worker" else "l-1"
        await fleet.ask_to_drain(name, now_ms=1)

        async def is_seen_draining() -> bool:
            return [beat.state for beat in await fleet.workers()] == [WorkerState.DRAINING]

        await until(is_seen_draining)
        waits = await client.ask("not now", 4)
        assert await client.ended(held) is RequestState.COMPLETED
        record = await client.queue.record(held)
        assert record is not None
        assert (record.attempt, record.charged) == (1, 0)
        assert await client.state(waits) is RequestState.QUEUED
        await fleet.take_back_drain(name)
        assert await client.ended(waits) is RequestState.COMPLETED
        assert worker.state is WorkerState.READY


async def test_it_is_told_to_end_while_it_was_asked_to_drain(server_url: str, rules: QueueRules, fleet: Fleet) -> None:
    async with working(server_url, rules) as worker:
        await fleet.ask_to_drain(worker.id, now_ms=1)

        async def drains() -> bool:
            return worker.state is WorkerState.DRAINING

        await until(drains)
        worker.drain()
        await fleet.take_back_drain(worker.id)
    assert worker.state is WorkerState.DRAINING, "nothing makes it ready again on its way out"
