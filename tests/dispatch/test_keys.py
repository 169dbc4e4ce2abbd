"""The names in dispatch/keys.py are the names the scripts use, and every key is one of them."""

from redis.asyncio import Redis

from dispatch.keys import ShardKeys
from dispatch.states import Priority
from tests.dispatch import walks
from tests.dispatch.test_planted_bugs import WALKS
from tests.dispatch.twin import MODEL, Twin

KEYS = ShardKeys("s0")


def names(twin: Twin) -> dict[str, set[str]]:
    """By kind, every name that dispatch/keys.py knows for what took part."""
    requests, workers, gateways = list(twin.model.requests), ["w-1", "w-2", "w-3"], ["g-1", "g-2"]
    a_model = [KEYS.parked, KEYS.rooms, KEYS.shut, KEYS.others, KEYS.leases, KEYS.stats, KEYS.pins, KEYS.turn]
    a_line = [KEYS.queue, KEYS.queue_front, KEYS.queue_alone, KEYS.sizes, KEYS.sizes_front, KEYS.sizes_alone]
    a_request = [KEYS.request, KEYS.input, KEYS.output, KEYS.tombstone, KEYS.webhook]
    found = {name.__name__: {name(MODEL)} for name in a_model}
    found |= {name.__name__: {name(MODEL, p) for p in Priority} for name in a_line}
    found |= {name.__name__: {name(r) for r in requests} for name in a_request}
    found |= {name.__name__: {name(w) for w in workers} for name in (KEYS.worker, KEYS.held, KEYS.prefill, KEYS.inbox)}
    found |= {name.__name__: {name(g) for g in gateways} for name in (KEYS.feed, KEYS.gateway)}
    found["idempotency"] = {KEYS.idempotency("", key) for key in twin.model.idempotency}
    found["session"] = {KEYS.session(MODEL, each) for each in twin.model.sessions}
    for single in ("timers", "requests", "expiries", "dead", "paused", "swept", "amnesty", "outbox"):
        found[single] = {getattr(KEYS, single)}
    return found


async def test_every_key_has_a_name_and_every_name_is_used(redis: Redis) -> None:
    used: set[str] = set()
    for walk in WALKS:
        await redis.flushall()
        twin = Twin(redis, walks.RULES)
        await walk(twin)
        await twin.pause(True)
        stored = {name.decode() for name in await redis.keys("*")}
        known = names(twin)
        assert not stored - set().union(*known.values()), f"after {walk.__name__}"
        used |= {kind for kind, members in known.items() if members & stored}
    # Lines and parked pulls that are empty at the end of a walk leave no key: seen while a request waits in each.
    twin = Twin(redis, walks.RULES)
    await redis.flushall()
    grant = await walks.running(twin)
    await twin.park("w-1", limit=15)
    await twin.enqueue(twin.new(60))
    await twin.park("w-1", limit=15, accepting=False)
    await twin.release(grant)
    await twin.park("w-2", limit=5)
    suspect = twin.new(2)
    await twin.enqueue(suspect)
    await twin.begin(twin.grant(suspect.id))
    await twin.abandon("w-2", (suspect.id,))
    await twin.park("w-3", limit=1)
    stored = {name.decode() for name in await redis.keys("*")}
    used |= {kind for kind, members in names(twin).items() if members & stored}
    # A worker that is closed, for it has much to prefill, and who waits for another's room by another strategy.
    await twin.park("w-4")
    await twin.park("w-5")
    await twin.enqueue(twin.new(10, prompt_tokens=900))
    await twin.enqueue(twin.new(500, strategy="least_connections"))
    stored = {name.decode() for name in await redis.keys("*")}
    used |= {kind for kind, members in names(twin).items() if members & stored}
    assert used == names(twin).keys()
