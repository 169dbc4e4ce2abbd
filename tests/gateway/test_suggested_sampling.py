"""What a model's files suggest holds for a request that names nothing; what a request names wins."""

from dataclasses import replace

from dispatch.fleet import Fleet
from tests.gateway.helpers import MODEL, FakeWorker, Running, until


async def test_the_cards_suggestion_holds_where_the_request_is_silent(gateway: Running, worker: FakeWorker, fleet: Fleet) -> None:
    await worker.publish()
    card = await fleet.card(MODEL)
    assert card is not None
    await fleet.put_card(replace(card, temperature=0.25, top_p=0.8, top_k=7), None)
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 2}
    for more in ({}, {"temperature": 1.5, "top_k": 0}):
        answer = await gateway.client.post("/v1/requests", json={**body, **more}, headers={"Prefer": "wait=10"})
        assert answer.status_code == 200, answer.text
    await until(lambda: len(worker.seen) == 2)
    silent, named = (request.sampling for request in worker.seen)
    assert (silent.temperature, silent.top_p, silent.top_k) == (0.25, 0.8, 7)
    assert (named.temperature, named.top_p, named.top_k) == (1.5, 0.8, 0)


async def test_an_answer_of_an_exact_length_may_be_asked_for(gateway: Running, worker: FakeWorker) -> None:
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 2}
    for more in ({"ignore_eos": True}, {}):
        answer = await gateway.client.post("/v1/requests", json={**body, **more}, headers={"Prefer": "wait=10"})
        assert answer.status_code == 200, answer.text
    await until(lambda: len(worker.seen) == 2)
    assert [request.body for request in worker.seen] == [{"ignore_eos": True}, {}]
    refused = await gateway.client.post("/v1/requests", json={**body, "ignore_eos": "please"})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "ignore_eos"
