"""The way out: attach and feed. No gap, no duplicate, and a reader that missed something is told."""

from dispatch import messages as m
from dispatch.keys import ShardKeys
from dispatch.states import RequestState
from tests.dispatch.invariants import chain_of
from tests.dispatch.twin import Twin
from tests.dispatch.walks import running

KEYS = ShardKeys("s0")


async def written(twin: Twin, chunks: int = 3) -> m.Grant:
    grant = await running(twin)
    for n in range(1, chunks + 1):
        await twin.append(grant, n, b"%d" % n)
    return grant


async def test_attach_brings_the_log_after_what_the_client_has(twin: Twin) -> None:
    grant = await written(twin)
    chains = chain_of(grant.request, [b"1", b"2", b"3"])
    for after in range(4):
        chain = chains[after - 1] if after else ""
        found = await twin.queue.attach(grant.request, "", after_seq=after, after_chain=chain)
        assert (found.status, found.live) == (m.AttachStatus.OK, True)
        assert [(e.seq, e.chain) for e in found.entries] == list(enumerate(chains, 1))[after:]


async def test_another_chain_is_a_rewind_with_the_whole_log(twin: Twin) -> None:
    grant = await written(twin)
    for after, chain in ((2, "f" * 16), (9, "f" * 16), (9, "")):
        found = await twin.queue.attach(grant.request, "g-1", after_seq=after, after_chain=chain)
        assert found.status is m.AttachStatus.REWIND
        assert [e.seq for e in found.entries] == [1, 2, 3]


async def test_only_reading_changes_nothing(twin: Twin) -> None:
    grant = await written(twin)
    await twin.queue.attach(grant.request, "")
    await twin.check()


async def test_unknown_is_missing(twin: Twin) -> None:
    assert (await twin.queue.attach(m.new_id(), "g-1")).status is m.AttachStatus.MISSING
    assert await twin.queue.cancel(m.new_id()) is None
    assert await twin.redis.keys("*") == []


async def test_an_output_no_longer_kept_is_gone(twin: Twin) -> None:
    grant = await written(twin)
    await twin.finish(grant, 4)
    await twin.redis.delete(KEYS.output(grant.request))
    found = await twin.queue.attach(grant.request, "g-1")
    assert (found.status, found.state, found.live) == (m.AttachStatus.GONE, RequestState.COMPLETED, False)
    await twin.redis.delete(KEYS.request(grant.request))
    found = await twin.queue.attach(grant.request, "g-1")
    assert (found.status, found.state) == (m.AttachStatus.GONE, RequestState.COMPLETED)
    assert await twin.queue.cancel(grant.request) is RequestState.COMPLETED


async def test_attach_after_the_end_brings_all_and_no_reader_is_kept(twin: Twin) -> None:
    grant = await written(twin)
    await twin.finish(grant, 4, b"4")
    found = await twin.attach("g-1", grant.request)
    assert (found.live, [e.kind.value for e in found.entries]) == (False, ["chunk"] * 4 + ["end"])
    assert not await twin.redis.exists(KEYS.feed("g-1"))


async def test_every_gateway_that_reads_is_told(twin: Twin) -> None:
    grant = await running(twin, reader="g-1")
    await twin.append(grant, 1, b"one")
    await twin.attach("g-2", grant.request)
    await twin.append(grant, 2, b"two")
    await twin.detach("g-1", grant.request)
    await twin.finish(grant, 3, b"three")
    await twin.read_feed("g-1")
    await twin.read_feed("g-2")
    assert [seq for seq, _, _ in twin.readers["g-2"].views[grant.request]] == [1, 2, 3, 4]


async def test_a_gateway_that_cannot_follow_is_cut_and_told(twin: Twin) -> None:
    grant = await running(twin, reader="g-1")
    await twin.read_feed("g-1")
    for n in range(1, twin.rules.feed_cap + 3):
        await twin.append(grant, n, b"%d" % n)
        assert await twin.redis.xlen(KEYS.feed("g-1")) <= twin.rules.feed_cap + 1
    assert await twin.read_feed("g-1"), "no word of the cut"
    assert await twin.redis.ttl(KEYS.feed("g-1")) > 0
    await twin.finish(grant, twin.rules.feed_cap + 3)
    assert not await twin.read_feed("g-1")


async def test_a_gateway_that_lapsed_gets_a_word_of_it(twin: Twin) -> None:
    grant = await running(twin, reader="g-1")
    await twin.read_feed("g-1")
    await twin.advance(twin.rules.reader_lease_ms)
    await twin.append(grant, 1, b"nobody is told")
    await twin.keep_reading("g-1")
    await twin.append(grant, 2, b"two")
    assert await twin.read_feed("g-1"), "no word of what it missed"
    assert [seq for seq, _, _ in twin.readers["g-1"].views[grant.request]] == [1, 2]
