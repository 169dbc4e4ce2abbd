"""Speeds learned from steps: whatever the seed said, whatever the load is, and never from idleness."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engines.sim_gpus import SIM_GPUS, SimGpu
from worker.engines.speed import CPU_SHAPE, Speedometer, Speeds


def run(meter: Speedometer, gpu: SimGpu, steps: list[tuple[int, int]], grain_s: float = 0.0) -> None:
    """Steps as seen by timers of that grain: each too long or too short, right only in sum."""
    at = seen = 0.0
    for number, (decoding, prefilled) in enumerate(steps):
        if number % 50 == 0:
            meter.speeds()  # as a worker asks with every beat
        at += gpu.step_s + gpu.per_sequence_s * decoding + prefilled / gpu.prefill_tokens_per_s
        before, seen = seen, at // grain_s * grain_s if grain_s else at
        meter.stepped(decoding, prefilled, seen - before)


@pytest.mark.parametrize("name", SIM_GPUS)
@pytest.mark.parametrize("factor", [0.1, 1.0, 20.0])
def test_mixed_load_tells_the_speeds_whatever_the_seed(name: str, factor: float) -> None:
    gpu, chance = SIM_GPUS[name], random.Random(1)
    meter = Speedometer(Speeds(gpu.tokens_per_s * factor, gpu.prefill_tokens_per_s / factor))
    steps = [(chance.randint(20, 60), chance.choice((0, 0, 0, 700, 2048))) for _ in range(4000)]
    run(meter, gpu, steps, grain_s=0.01)
    assert meter.speeds().decode == pytest.approx(gpu.tokens_per_s, rel=0.04)
    assert meter.speeds().prefill == pytest.approx(gpu.prefill_tokens_per_s, rel=0.08)


def test_a_steady_batch_of_32_needs_no_more_than_its_pace() -> None:
    gpu = SIM_GPUS["H100"]
    meter = Speedometer(Speeds(100.0, 100.0))
    run(meter, gpu, [(32, 0)] * 1000)
    assert meter.speeds().decode == pytest.approx(gpu.tokens_per_s, rel=0.01)
    assert meter.speeds().prefill == pytest.approx(100.0, rel=0.05)  # nothing was learned of it


def test_idleness_and_single_streams_do_not_lower_a_weight() -> None:
    gpu = SIM_GPUS["H100"]
    meter = Speedometer(Speeds(gpu.tokens_per_s, gpu.prefill_tokens_per_s))
    run(meter, gpu, [(1, 0)] * 2000)
    assert meter.speeds().decode == pytest.approx(gpu.tokens_per_s, rel=0.25)
    before = meter.speeds()
    assert meter.speeds() == before  # nothing happens, nothing is forgotten


def test_a_cpu_that_served_single_streams_is_not_taken_for_a_gpu() -> None:
    """The demo model, measured: 3 ms a step alone, 46 ms with 32."""
    cpu = SimGpu("cpu", 0.0016, 0.0014, 14_000, 1, 1)
    meter = Speedometer(Speeds(cpu.tokens_per_s * 1.3, 7_000), CPU_SHAPE)
    run(meter, cpu, [(1, 0)] * 5000)
    assert meter.speeds().decode == pytest.approx(cpu.tokens_per_s, rel=0.6)
    as_a_gpu = Speedometer(Speeds(cpu.tokens_per_s * 1.3, 7_000))
    run(as_a_gpu, cpu, [(1, 0)] * 5000)
    assert as_a_gpu.speeds().decode > 3 * meter.speeds().decode
    run(meter, cpu, [(1, 0), (32, 0)] * 500)
    assert meter.speeds().decode == pytest.approx(cpu.tokens_per_s, rel=0.05)


def test_prompts_of_a_few_tokens_say_little_of_the_prefill() -> None:
    gpu, chance = SIM_GPUS["A10"], random.Random(3)
    meter = Speedometer(Speeds(gpu.tokens_per_s, gpu.prefill_tokens_per_s))
    steps = [(chance.randint(20, 40), chance.choice((0,) * 9 + (20,))) for _ in range(2000)]
    run(meter, gpu, steps, grain_s=0.01)
    assert meter.speeds().prefill == pytest.approx(gpu.prefill_tokens_per_s, rel=0.1)


def test_it_follows_a_device_that_slows_down() -> None:
    slow = SimGpu("slow", 0.012, 0.00008, 15_000, 1, 1)
    meter = Speedometer(Speeds(SIM_GPUS["H100"].tokens_per_s, 30_000))
    run(meter, SIM_GPUS["H100"], [(32, 0), (32, 512)] * 1000)
    run(meter, slow, [(32, 0), (32, 512)] * 6000)
    assert meter.speeds().decode == pytest.approx(slow.tokens_per_s, rel=0.05)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 512), st.integers(0, 4096), st.floats(0, 2)), min_size=1, max_size=50),
    st.floats(1, 1e4),
    st.floats(1, 1e5),
)
def test_whatever_the_steps_say_a_speed_is_a_positive_number(
    steps: list[tuple[int, int, float]], decode: float, prefill: float
) -> None:
    meter = Speedometer(Speeds(decode, prefill))
    for step in steps:
        meter.stepped(*step)
        said = meter.speeds()
        assert 0 < said.decode < float("inf") and 0 < said.prefill < float("inf")
