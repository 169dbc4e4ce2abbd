"""A request that moved tells its story, and its streams go on as one text."""

import json

from dispatch import messages as m
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from tests.gateway.helpers import MODEL, FakeWorker, Running, events_of


async def granted_to(queue: Queue, worker: str) -> m.Grant:
    await queue.park(m.Offer(worker, MODEL, 10_000, 4, 1.0))
    _, words = await queue.read_inbox(worker, "0", block_ms=1000)
    grant = words[-1]
    assert isinstance(grant, m.Grant)
    await queue.begin(grant)
    return grant


async def moved(gateway: Running, queue: Queue, fleet: Fleet) -> str:
    """One attempt writes two words and dies; the next writes the third and ends."""
    await FakeWorker(queue, fleet).publish()
    answer = await gateway.client.post("/v1/requests", json={"model": MODEL, "prompt": "hello", "max_tokens": 8})
    request = str(answer.json()["id"])
    first = await granted_to(queue, "w-a")
    await queue.append(first, 1, b'{"text":"one ","tokens":[1]}')
    await queue.append(first, 2, b'{"text":"two ","tokens":[2]}')
    await queue.abandon("w-a", "its process was killed by signal 9")
    second = await granted_to(queue, "w-b")
    end = json.dumps({"finish_reason": "stop", "usage": {**m.Usage(1, 3).as_openai(), "resumed_tokens": 2}}).encode()
    assert await queue.finish(second, 4, b'{"text":"three","tokens":[3]}', end) is m.WriteStatus.OK
    return request


async def test_the_story_names_each_attempt_and_why_it_was_over(gateway: Running, queue: Queue, fleet: Fleet) -> None:
    request = await moved(gateway, queue, fleet)
    document = (await gateway.client.get(f"/v1/requests/{request}")).json()
    (told,) = document["story"]
    assert (told["attempt"], told["worker"], told["seq"]) == (1, "w-a", 2)
    assert "signal 9" in told["why"]
    assert told["granted_at_ms"] <= told["begun_at_ms"] <= told["left_at_ms"]
    assert (document["attempt"], document["worker"], document["charged"]) == (2, "w-b", 1)


async def test_the_native_stream_notes_the_new_attempt_and_the_text_goes_on(gateway: Running, queue: Queue, fleet: Fleet) -> None:
    request = await moved(gateway, queue, fleet)
    async with gateway.client.stream("GET", f"/v1/requests/{request}/events") as response:
        events = [event async for event in events_of(response)]
    assert [e.name for e in events] == ["status", "chunk", "chunk", "note", "chunk", "end"]
    assert json.loads(events[3].data) == {"attempt": 2, "worker": "w-b"}
    result = (await gateway.client.get(f"/v1/requests/{request}/result")).json()
    assert (result["text"], result["attempts"]) == ("one two three", 2)
    assert result["usage"]["penstock"] == {"attempts": 2, "resumed_tokens": 2}
