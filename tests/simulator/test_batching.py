"""One worker's steps: what a lone request takes, what company costs, and that time is not made up."""

import math

import pytest

from dispatch.pricing import cost_tokens
from penstock.simulator.batching import Batch, Job
from penstock.simulator.trace import Arrival
from worker.engines.sim_gpus import SIM_GPUS

A10 = SIM_GPUS["A10"]


def job(index: int, prompt_tokens: int, answer_tokens: int) -> Job:
    return Job(index, Arrival(0.0, prompt_tokens, answer_tokens), cost_tokens(prompt_tokens, answer_tokens))


def run(batch: Batch, until: float = math.inf) -> tuple[dict[int, float], dict[int, float]]:
    """Step until nothing is under way, or until then; when each said its first and its last token."""
    first_at, ended_at = {}, {}
    while batch.ends_at <= until and batch.ends_at != math.inf:
        now = batch.ends_at
        first, ended = batch.end()
        first_at |= {j.index: now for j in first}
        ended_at |= {j.index: now for j in ended}
    return first_at, ended_at


@pytest.mark.parametrize(("prompt_tokens", "chunks"), [(100, [100]), (2_048, [2_048]), (5_000, [2_048, 2_048, 904])])
def test_a_lone_request_takes_what_its_steps_take(prompt_tokens: int, chunks: list[int]) -> None:
    batch = Batch(A10)
    batch.add(job(0, prompt_tokens, 40), 0.0)
    first_at, ended_at = run(batch)
    prefill_s = sum(A10.step_s + chunk / A10.prefill_tokens_per_s for chunk in chunks) + A10.per_sequence_s
    assert first_at[0] == pytest.approx(prefill_s)
    assert ended_at[0] == pytest.approx(prefill_s + 39 * (A10.step_s + A10.per_sequence_s))


def test_an_answer_of_one_token_ends_with_its_first() -> None:
    batch = Batch(A10)
    batch.add(job(0, 10, 1), 0.0)
    first_at, ended_at = run(batch)
    assert first_at == ended_at == {0: pytest.approx(A10.step_s + A10.per_sequence_s + 10 / A10.prefill_tokens_per_s)}
    assert len(batch) == 0


def test_a_newcomer_joins_at_the_next_step_and_prolongs_the_others() -> None:
    batch = Batch(A10)
    batch.add(job(0, 10, 100), 0.0)
    alone_s = A10.step_s + A10.per_sequence_s
    run(batch, until=A10.step_s + A10.per_sequence_s + 10 / A10.prefill_tokens_per_s)
    start = A10.step_s + A10.per_sequence_s + 10 / A10.prefill_tokens_per_s
    batch.add(job(1, 3_000, 1), start + 10.5 * alone_s)
    first_at, ended_at = run(batch)
    joined_at = start + 11 * alone_s
    whole_s = 2 * A10.step_s + 3 * A10.per_sequence_s + 3_000 / A10.prefill_tokens_per_s
    assert first_at[1] == pytest.approx(joined_at + whole_s)
    assert ended_at[0] == pytest.approx(joined_at + whole_s + (99 - 11 - 2) * alone_s)


def test_short_prompts_share_a_step() -> None:
    batch = Batch(A10)
    batch.add(job(0, 500, 5), 0.0)
    run(batch, until=A10.step_s + A10.per_sequence_s + 500 / A10.prefill_tokens_per_s)
    for index in (1, 2, 3):
        batch.add(job(index, 600, 5), batch.ends_at - 0.001)
    first_at, _ = run(batch)
    assert first_at[1] == first_at[2] == first_at[3]


def test_a_frozen_batch_goes_on_where_it_stopped() -> None:
    free, frozen = Batch(A10), Batch(A10)
    for batch in (free, frozen):
        batch.add(job(0, 10, 100), 0.0)
        run(batch, until=0.5)
    frozen.freeze(1.0, 10.0)
    assert run(frozen)[1][0] == pytest.approx(run(free)[1][0] + 10.0)


def test_what_was_said_is_kept_when_it_is_taken_away() -> None:
    batch = Batch(A10)
    mine = job(0, 10, 100)
    batch.add(mine, 0.0)
    run(batch, until=0.04)
    started_at = A10.step_s + A10.per_sequence_s + 10 / A10.prefill_tokens_per_s
    lost = batch.abandon(started_at + 20.5 * (A10.step_s + A10.per_sequence_s))
    assert lost == [mine]
    assert mine.said == 21
    assert mine.prefill_left == 31
    assert batch.ends_at == math.inf


def test_kv_in_use_grows_by_pages_to_the_cost_and_no_further() -> None:
    batch = Batch(A10)
    one = job(0, 100, 60)
    batch.add(one, 0.0)
    seen = [batch.held_tokens(0.0)]
    while batch.ends_at != math.inf:
        now = batch.ends_at
        seen.append(batch.held_tokens(now - 1e-9))
        batch.end()
    assert seen == sorted(seen)
    assert max(seen) <= one.cost
