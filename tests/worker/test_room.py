"""Room = capacity - headroom - used - promised, in tokens and bytes; and that no order of grants, growth and foreign use
brings a worker over its memory."""

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispatch.messages import Grant, InferenceRequest, InputKind, Sampling
from dispatch.pricing import PAGE_TOKENS, cost_tokens
from dispatch.reports import ModelCard
from worker.admission import DeviceMemory, Holding, Speeds, expected_tokens, holds_at_once, is_overrun, offer, room
from worker.engines.base import EngineInfo
from worker.engines.sim_gpus import SIM_GPUS
from worker.growth import Growth
from worker.held import Held

KV = 1_000  # bytes of a token
GB = 10**9
POOLED = EngineInfo(ModelCard("m", "sim", 131_072, KV, 10_000), limit_tokens=10_000, slots=64, weight=7.0, device="cuda")
GROWING = replace(POOLED, pooled=False)
HELD = [Holding(500, 500, 200, 900), Holding(300, 400, 350, 2000)]


def memory(free: int, *, headroom: int = 0, promised: int = 0) -> DeviceMemory:
    return DeviceMemory(100_000_000, free, headroom, promised)


@pytest.mark.parametrize(
    ("info", "device", "visible", "capacity", "kept", "bound_by"),
    [
        (POOLED, None, None, 10_000, 0, "engine"),
        (POOLED, memory(5_000_000), None, 10_000, 0, "engine"),  # the pool stands, whatever is free beside it
        (POOLED, memory(5_000, headroom=10_000), None, 10_000, 0, "engine"),  # what it took itself it uses again
        (
            POOLED,
            replace(memory(5_000, headroom=10_000), squeezed=True),
            None,
            900,
            0,
            "device",
        ),  # too little for a step: what is held, no more
        (GROWING, memory(50_000_000), None, 10_000, 0, "engine"),
        (GROWING, memory(5_000_000), None, 550 + 5_000, 0, "device"),
        (GROWING, memory(5_000_000, headroom=1_000_000, promised=500_001), None, 5_550, 1_501, "device"),
        (GROWING, memory(5_000_000), 100, 5_100, 0, "device"),  # the engine sees less: something just ended
        (GROWING, memory(5_000_000), 900, 5_550, 0, "device"),  # the engine sees more: something just began
    ],
)
def test_what_bounds_the_room(
    info: EngineInfo, device: DeviceMemory | None, visible: int | None, capacity: int, kept: int, bound_by: str
) -> None:
    found = room(info, HELD, device, visible_tokens=visible)
    assert (found.capacity_tokens, found.headroom_tokens, found.bound_by) == (capacity, kept, bound_by)
    assert (found.used_tokens, found.promised_tokens) == (550, 350)
    assert found.room_tokens == capacity - kept - 550 - 350


def test_after_an_overrun_all_count_at_their_most() -> None:
    found = room(POOLED, HELD, cautious=True)
    assert (found.promised_tokens, found.room_tokens, found.bound_by) == (2_900 - 550, 10_000 - 2_900, "overrun")


def test_the_limit_falls_when_another_process_takes_memory_and_rises_when_it_gives_it_back() -> None:
    held = [Holding(2_000, 2_000, 1_000, 4_000)]
    info = replace(GROWING, card=replace(GROWING.card, kv_bytes_per_token=131_072), limit_tokens=427_000)

    def limit(free: int) -> int:
        found = room(info, held, DeviceMemory(80 * GB, free, 2 * GB))
        offered = offer(info, "w", held, accepting=True, found=found)
        assert offered.limit_tokens - 2_000 <= max(0, (free - 2 * GB) // 131_072)  # never what the bytes cannot hold
        return offered.limit_tokens

    before, during, after = limit(50 * GB), limit(30 * GB), limit(50 * GB)
    assert before == after
    assert before - during == pytest.approx(20 * GB / 131_072, abs=2)


def test_the_offer_says_what_was_measured() -> None:
    found = room(POOLED, HELD)
    said = offer(POOLED, "w", HELD, accepting=True, found=found, speeds=Speeds(11.0, 22.0, 0.5, 3))
    assert (said.weight, said.prefill_weight, said.utilisation, said.waiting) == (11.0, 22.0, 0.5, 3)
    assert said.memory == pytest.approx(0.055)
    assert said.limit_tokens == 10_000 - 100  # what outgrew its cost is not seen by Redis


@pytest.mark.parametrize(
    ("granted", "prompt", "spoken", "most", "expected"),
    [
        (160, 100, 0, 1_104, 160),
        (160, 100, 60, 1_104, 160),
        (160, 100, 61, 1_104, 224),  # outgrown: as if half done
        (160, 100, 600, 1_104, 1_104),  # never more than its most
        (1_104, 100, 1_000, 1_104, 1_104),
    ],
)
def test_one_that_outgrew_its_cost_is_expected_to_be_half_done(
    granted: int, prompt: int, spoken: int, most: int, expected: int
) -> None:
    assert expected_tokens(granted, prompt, spoken, most) == expected


def test_what_is_at_its_most_needs_no_further_page() -> None:
    full = Holding(64, 64, 64, 64)
    assert not is_overrun(256, [full] * 4)
    assert is_overrun(256, [full] * 3 + [Holding(64, 64, 56, 80)])


class Running:
    """What Held knows of an execution, without an engine and a queue."""

    def __init__(self, name: str, prompt: int, answer: int, most: int, granted: int, begun_at: float) -> None:
        self.grant = Grant(name, "w", 1, "n", granted)
        self.growth = Growth(granted, moves_overruns=True)
        sampling = Sampling(max_tokens=most - prompt)
        request = InferenceRequest(name, "m", InputKind.COMPLETION, sampling, prompt_token_ids=(0,) * prompt)
        self.growth.begun(request, most, 0)
        self.answer = answer
        self.generating = True
        self.generating_since = begun_at
        self.is_decided = False

    @property
    def holding(self) -> Holding:
        return self.growth.holding(generating=self.generating)

    def move(self, why: str) -> None:
        self.is_decided = True

    @property
    def fills(self) -> int:
        """The engine's truth."""
        return self.holding.used_tokens


@dataclass
class Bench:
    """One worker with the real accounts and a device that runs out when it is full; Redis as the offer lets it."""

    info: EngineInfo
    total_bytes: int = 0
    headroom_bytes: int = 0
    foreign_bytes: int = 0
    held: Held = field(default_factory=Held)
    limit: int = 0
    device: DeviceMemory | None = None
    out_of_memory: int = 0
    moved: int = 0
    most_filled: int = 0

    def __post_init__(self) -> None:
        self.held.holds_tokens = self.holds

    @property
    def running(self) -> list[Running]:
        return list(self.held)  # type: ignore[arg-type]

    @property
    def filled(self) -> int:
        return sum(r.fills for r in self.running)

    def holds(self) -> int:
        return holds_at_once(self.info, room(self.info, self.held.holdings(), self.device))

    def beat(self) -> None:
        """Look at the device, make room if there is none, and park. What is moved is gone before the next page is needed."""
        if not self.info.pooled:
            free = self.total_bytes - self.foreign_bytes - self.filled * KV
            self.device = DeviceMemory(self.total_bytes, free, self.headroom_bytes)
        self.held.relieve()
        self.park()

    def park(self) -> None:
        holdings = self.held.holdings()
        found = room(self.info, holdings, self.device, cautious=self.held.is_cautious)
        self.limit = offer(self.info, "w", holdings, accepting=True, found=found).limit_tokens

    @property
    def room(self) -> int:
        """What Redis takes the room for."""
        return self.limit - sum(r.grant.cost_tokens for r in self.running)

    def begin(self, running: Running) -> None:
        self.held.add(running)  # type: ignore[arg-type]
        self.held.relieve()
        if running.is_decided:
            running.generating = False  # its engine never hears of it (test_execution.py)

    def step(self, spoken: int) -> list[Running]:
        """Everything speaks; the device is asked for the pages first, and the worker hears of them after."""
        growing = [running for running in self.running if not running.is_decided]
        pages = [r.growth.count(min(spoken, r.answer - r.growth.spoken_tokens)) for r in growing]
        self.check()
        for grown in pages:
            self.held.grown(grown)
        gone = [r for r in self.running if r.is_decided or r.growth.spoken_tokens >= r.answer]
        if any(r.is_decided for r in gone):
            self.park()  # before what was moved is back in line
        for running in gone:
            self.held.remove(running)  # type: ignore[arg-type]
        self.moved += sum(r.is_decided for r in gone)
        return gone

    def check(self) -> None:
        filled = self.filled
        self.most_filled = max(self.most_filled, filled)
        over_pool = filled > self.info.limit_tokens
        over_bytes = bool(self.total_bytes) and filled * KV > self.total_bytes - self.foreign_bytes
        self.out_of_memory += over_pool or over_bytes


requests = st.lists(
    st.tuples(st.integers(1, 800), st.integers(1, 400), st.floats(0.02, 1.0)), min_size=1, max_size=40
)  # prompt, answer, how much of what is true the estimate says


@pytest.mark.parametrize("prompt", range(1, 40))
def test_growth_counts_the_very_pages_that_fill(prompt: int) -> None:
    growth = Growth(16, moves_overruns=True)
    request = InferenceRequest("r", "m", InputKind.COMPLETION, Sampling(max_tokens=99), prompt_token_ids=(0,) * prompt)
    growth.begun(request, cost_tokens(prompt, 99), 0)
    for tokens in (1, 2, 1, 15, 16, 17, 1, 33):
        before = growth.holding(generating=True).used_tokens
        assert growth.count(tokens) * PAGE_TOKENS == growth.holding(generating=True).used_tokens - before


# One outgrows its estimate by a page, and the last to begin finds none: moved at once, it must not fill anything first.
_LAST_FINDS_NONE = [
    *[(1, 1, 1.0)] * 3,
    (17, 16, 1.0),
    (129, 16, 1.0),
    (385, 16, 1.0),
    (593, 16, 0.5),
    (673, 16, 1.0),
    (49, 1, 1.0),
]
# Prompts end within a page: the pages fill at other tokens than each sixteenth of an answer.
_OUT_OF_STEP = [(18, 175, 0.5), (82, 175, 1.0), (114, 175, 1.0), (210, 175, 1.0), (706, 160, 1.0)]


@settings(max_examples=150, deadline=None)
@example(_LAST_FINDS_NONE, [], False)
@example(_LAST_FINDS_NONE, [], True)
@example(_OUT_OF_STEP, [*[(1, 0)] * 6, (10, 0), *[(16, 0)] * 8, (15, 0)], False)
@example(_OUT_OF_STEP, [*[(1, 0)] * 6, (10, 0), *[(16, 0)] * 8, (15, 0)], True)
@given(requests, st.lists(st.tuples(st.integers(1, PAGE_TOKENS), st.integers(-40, 40)), max_size=60), st.booleans())
def test_never_over_capacity_whatever_the_order(
    asked: list[tuple[int, int, float]], steps: list[tuple[int, int]], pooled: bool
) -> None:
    headroom = 64 * KV
    bench = Bench(replace(POOLED if pooled else GROWING, limit_tokens=2_048))
    if not pooled:
        bench.total_bytes, bench.headroom_bytes = 2_500 * KV, headroom
    waiting = [
        (f"r{i}", p, a, cost_tokens(p, a), max(PAGE_TOKENS, cost_tokens(p, int(a * part))))
        for i, (p, a, part) in enumerate(asked)
    ]
    moment, turns = 0.0, 0
    script = iter(steps)
    while (waiting or len(bench.held)) and turns < 4_000:
        turns += 1
        spoken, foreign = next(script, (PAGE_TOKENS, -40))
        bench.beat()
        if not pooled:
            # Others take what is free, and between two looks no more than the headroom is for.
            free = bench.total_bytes - bench.foreign_bytes - bench.filled * KV
            bench.foreign_bytes = max(0, bench.foreign_bytes + min(foreign * KV, free, headroom))
        for one in list(waiting):
            moment += 1
            name, prompt, answer, most, cost = one
            if cost <= bench.room and len(bench.held) < bench.info.slots:
                waiting.remove(one)
                bench.begin(Running(name, prompt, answer, most, cost, moment))
        for gone in bench.step(spoken):
            if gone.is_decided:
                first = next(i for i in range(len(asked)) if f"r{i}" == gone.grant.request)
                prompt, answer, _ = asked[first]
                assert gone.growth.dearer_tokens >= gone.grant.cost_tokens
                waiting.insert(0, (gone.grant.request, prompt, answer, cost_tokens(prompt, answer), gone.growth.dearer_tokens))
                bench.held._cautious_until = 0.0  # as if its seconds were over: the harder case
    assert not bench.out_of_memory
    assert not waiting and not len(bench.held), "something never found its room"


def test_ten_thousand_mixed_requests_on_a_small_and_a_large_gpu() -> None:
    """10 to 60,000 tokens, 24 and 141 GB, estimates often far too small: every page that is asked for is there."""
    chance = random.Random(4)
    benches = [
        Bench(replace(POOLED, limit_tokens=SIM_GPUS[name].kv_tokens, slots=SIM_GPUS[name].slots)) for name in ("A10", "H200")
    ]
    largest = max(bench.info.limit_tokens for bench in benches)
    waiting: list[tuple[str, int, int, int, int]] = []
    for i in range(10_000):
        size = chance.randint(10, 60_000)
        answer = min(size - 1, chance.randint(1, 2_000))
        most = cost_tokens(size - answer, min(4_096, 3 * answer))
        waiting.append((f"r{i}", size - answer, answer, most, min(most, cost_tokens(size - answer, chance.randint(1, 200)))))
    asked = {name: (prompt, answer, most) for name, prompt, answer, most, _ in waiting}
    moment, done = 0.0, 0
    while waiting or any(len(bench.held) for bench in benches):
        for bench in benches:
            bench.beat()
            room_tokens, taken = bench.room, 0
            for at, (name, prompt, answer, most, cost) in enumerate(waiting[:64]):
                if cost <= room_tokens and len(bench.held) < bench.info.slots and most <= bench.info.limit_tokens:
                    moment += 1
                    room_tokens -= cost
                    del waiting[at - taken]
                    taken += 1
                    bench.begin(Running(name, prompt, answer, most, cost, moment))
        for bench in benches:
            for gone in bench.step(PAGE_TOKENS):
                done += not gone.is_decided
                if gone.is_decided:
                    waiting.insert(0, (gone.grant.request, *asked[gone.grant.request], gone.growth.dearer_tokens))
            bench.held._cautious_until = 0.0
    assert done == 10_000 and largest >= 60_000
    assert [bench.out_of_memory for bench in benches] == [0, 0]
    assert all(bench.most_filled >= 0.9 * bench.info.limit_tokens for bench in benches), "the memory was not really full"
    assert all(bench.moved for bench in benches), "nothing was ever overrun: the estimates were not hard enough"
