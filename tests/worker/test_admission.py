"""What a worker offers: the room Redis derives from it is never more than what truly fits."""

from hypothesis import given
from hypothesis import strategies as st

from dispatch.reports import ModelCard
from worker.admission import Holding, fits, needed, offer
from worker.engines.base import EngineInfo

INFO = EngineInfo(ModelCard("m", "sim", 4096, 1, 1000), limit_tokens=1000, slots=4, weight=7.0, device="sim")
holdings = st.lists(st.builds(Holding, st.integers(0, 400), st.integers(0, 400)), max_size=6)


def test_an_idle_worker_offers_all_it_has() -> None:
    offered = offer(INFO, "w-1", [], accepting=True)
    assert (offered.worker, offered.model, offered.limit_tokens, offered.slots, offered.weight) == ("w-1", "m", 1000, 4, 7.0)


def test_a_draining_worker_accepts_nothing() -> None:
    assert not offer(INFO, "w-1", [], accepting=False).accepting


@given(holdings)
def test_room_in_redis_is_never_more_than_what_is_free(held: list[Holding]) -> None:
    room = offer(INFO, "w-1", held, accepting=True).limit_tokens - sum(h.granted_tokens for h in held)
    assert room <= max(0, INFO.limit_tokens - needed(held))


@given(holdings, st.builds(Holding, st.integers(0, 400), st.integers(0, 400)))
def test_what_fits_leaves_the_engine_within_its_limits(held: list[Holding], one: Holding) -> None:
    if fits(INFO.limit_tokens, INFO.slots, held, one):
        assert needed([*held, one]) <= INFO.limit_tokens
        assert len(held) + 1 <= INFO.slots


def test_a_full_room_takes_no_more() -> None:
    four = [Holding(10, 10)] * 4
    assert not fits(1000, 4, four, Holding(1, 1))
    assert not fits(1000, 4, [Holding(100, 990)], Holding(16, 16))
    assert fits(1000, 4, [Holding(100, 984)], Holding(16, 16))
