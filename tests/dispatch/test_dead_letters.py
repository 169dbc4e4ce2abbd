"""What used up its attempts or killed its workers is kept where somebody can look at it."""

import json

from dispatch.keys import ShardKeys
from dispatch.states import RequestState
from tests.dispatch.twin import Twin
from tests.dispatch.walks import lapse, running

KEYS = ShardKeys("s0")


async def test_a_dead_letter_is_listed_and_kept_for_days_with_its_input(twin: Twin) -> None:
    grant = await running(twin, max_attempts=1)
    await twin.append(grant, 1, b"one")
    await lapse(twin)
    ((_, letter),) = await twin.redis.xrange(KEYS.dead)
    assert (letter[b"id"].decode(), letter[b"worker"], letter[b"code"]) == (grant.request, b"w-1", b"attempts_exhausted")
    assert (letter[b"charged"], letter[b"crashes"]) == (b"1", b"0")
    for key in (KEYS.dead, KEYS.request(grant.request), KEYS.input(grant.request), KEYS.output(grant.request)):
        assert 0 <= twin.rules.dead_ms - await twin.redis.pttl(key) < 60_000
    assert await twin.queue.input(grant.request) is not None


async def test_its_end_says_why(twin: Twin) -> None:
    grant = await running(twin, max_attempts=1)
    await twin.retry(grant)
    end = json.loads((await twin.queue.output(grant.request))[-1].data)
    assert (end["state"], end["attempts"]) == (RequestState.FAILED, 1)
    assert end["error"]["code"] == "engine_error"
    assert end["error"]["dead"] is True
    assert "boo" in end["error"]["message"]


async def test_two_crashes_kill_the_suspect_and_not_its_neighbour(twin: Twin) -> None:
    suspect = await running(twin, "w-1", max_attempts=9)
    beside = await running(twin, "w-1", max_attempts=9)
    await twin.abandon("w-1", (suspect.request,))
    assert (await twin.park("w-2")).held == 1, "the suspect, alone"
    await twin.begin(twin.grant(suspect.request))
    assert twin.record(beside.request).state is RequestState.QUEUED
    await twin.abandon("w-2", (suspect.request,))
    assert twin.record(suspect.request).dead
    await twin.park("w-3")
    await twin.begin(twin.grant(beside.request))
    assert (twin.record(beside.request).state, twin.record(beside.request).charged) == (RequestState.RUNNING, 1)
