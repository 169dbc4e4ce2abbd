"""What holds for `decide` on any trace: bounds, order, turns, blindness, restarts."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.policy import TURN_S, Decision, History, PoolPolicy, decide
from autoscaler.seen import Phase, Seen, SeenWorker
from dispatch.scaling import Action, ScalingPolicy
from tests.autoscaler.seeing import BEGIN_S

PHASES = st.sampled_from([*Phase, Phase.READY, Phase.READY])
SHARES = st.none() | st.floats(0, 1)
POLICIES = st.builds(
    PoolPolicy,
    min=st.integers(0, 4),
    max=st.integers(0, 30),
    initial=st.integers(0, 5),
    policies=st.lists(st.sampled_from(ScalingPolicy), min_size=0, max_size=4, unique=True).map(tuple),
    target_s=st.floats(0.1, 60),
    up_window_s=st.sampled_from([0.0, 0.0, 5.0, 30.0]),
    down_window_s=st.sampled_from([0.0, 10.0, 60.0]),
    step_up=st.integers(0, 3),
    step_down=st.integers(0, 3),
    idle_timeout_s=st.sampled_from([0.0, 5.0, 300.0]),
)


@st.composite
def workers(draw: st.DrawFn) -> tuple[SeenWorker, ...]:
    return tuple(
        SeenWorker(
            draw(st.sampled_from(["", f"w{n}", f"w{n}"])),
            draw(PHASES),
            draw(st.floats(0, 900)),
            held=draw(st.integers(0, 9)),
            left_tokens=draw(st.integers(0, 5_000)),
            tokens_per_s=draw(st.sampled_from([0.0, 100.0])),
            utilisation=draw(SHARES),
            memory_used=draw(SHARES),
        )
        for n in range(draw(st.integers(0, 6)))
    )


@st.composite
def looks(draw: st.DrawFn, at_s: float = 0.0) -> Seen:
    waiting = draw(st.sampled_from([0, 0, 1, 40, 4_000]))
    return Seen(
        at_s=BEGIN_S + at_s,
        waiting=waiting,
        waiting_tokens=waiting * draw(st.integers(0, 500)),
        oldest_wait_s=draw(st.floats(0, 100)) if waiting else 0.0,
        running=draw(st.sampled_from([0, 0, 1, 50])),
        workers=draw(workers()),
        tokens_per_s_each=draw(st.sampled_from([0.0, 100.0])),
        ttft_p95_s=draw(st.none() | st.floats(0, 20)),
        cold_start_s=draw(st.sampled_from([None, (2.0, 3.0), (30.0, 45.0)])),
        queue_paused=draw(st.sampled_from([False, False, False, True])),
        unplaceable=draw(st.sampled_from(["", "", "", "no GPU has room"])),
        blind=draw(st.sampled_from(["", "", "", "Redis does not answer"])),
    )


@st.composite
def traces(draw: st.DrawFn) -> list[Seen]:
    at_s, found = 0.0, []
    for _ in range(draw(st.integers(1, 15))):
        at_s += draw(st.sampled_from([1.0, 1.0, 5.0, 20.0, 61.0]))
        found.append(draw(looks(at_s)))
    return found


def play(policy: PoolPolicy, trace: list[Seen]) -> list[tuple[History, Decision, History]]:
    history, found = History(), []
    for seen in trace:
        decision, after = decide(seen, policy, history)
        found.append((history, decision, after))
        history = after
    return found


def capacity(seen: Seen) -> int:
    return seen.count(Phase.READY, Phase.STARTING, Phase.LOADING)


@settings(max_examples=40)
@given(POLICIES, traces())
def test_bounds_hold(policy: PoolPolicy, trace: list[Seen]) -> None:
    for seen, (_, decision, _) in zip(trace, play(policy, trace), strict=True):
        if seen.blind:
            continue
        assert 0 <= decision.desired <= policy.max
        assert decision.desired >= min(policy.min, policy.max) or decision.action is Action.BLOCKED
        if decision.action is Action.BLOCKED and seen.unplaceable:
            assert decision.desired <= capacity(seen)
        assert decision.reason


@settings(max_examples=40)
@given(POLICIES, traces())
def test_the_action_is_what_became_of_the_number(policy: PoolPolicy, trace: list[Seen]) -> None:
    for before, decision, _ in play(policy, trace):
        if before.first_at_s is not None and decision.action is not Action.BLOCKED:
            change = decision.desired - before.base
            assert decision.action is (Action.UP if change > 0 else Action.DOWN if change < 0 else Action.HOLD)


@settings(max_examples=40)
@given(POLICIES, traces())
def test_a_blind_tick_never_decides(policy: PoolPolicy, trace: list[Seen]) -> None:
    for seen, (before, decision, after) in zip(trace, play(policy, trace), strict=True):
        if seen.blind:
            assert decision.action is Action.HOLD
            assert decision.replace == ()
            assert decision.desired == (before.base if before.first_at_s is not None else decision.desired)
            assert replace(after, told=()) == replace(before, told=())


@settings(max_examples=40)
@given(POLICIES, traces())
def test_no_more_than_one_turn_a_minute(policy: PoolPolicy, trace: list[Seen]) -> None:
    """But for what wakes from zero."""
    direction, turned_at_s = 0, -1e18
    for seen, (before, decision, _) in zip(trace, play(policy, trace), strict=True):
        change = {Action.UP: 1, Action.DOWN: -1}.get(decision.action, 0)
        forced = before.base == 0 or not min(policy.min, policy.max) <= before.base <= policy.max
        if change and direction and change != direction:
            assert forced or seen.at_s - turned_at_s >= TURN_S
            turned_at_s = seen.at_s if before.base else turned_at_s
        direction = change or direction


@settings(max_examples=40)
@given(POLICIES, traces())
def test_what_runs_stays_for_one_window_after_a_restart(policy: PoolPolicy, trace: list[Seen]) -> None:
    trace = [replace(seen, blind="", unplaceable="") for seen in trace]
    cold = trace[0].cold_start_s
    late_s = max(10.0, 3 * cold[1]) if cold else 600.0
    late = [w for w in trace[0].workers if w.phase in (Phase.STARTING, Phase.LOADING) and w.age_s > late_s]
    first, begun_s = min(capacity(trace[0]) - len(late), policy.max), trace[0].at_s
    for seen, (_, decision, _) in zip(trace, play(policy, trace), strict=True):
        if decision.action is not Action.BLOCKED and seen.at_s - begun_s < policy.down_window_s:
            assert decision.desired >= first
        if decision.action is Action.BLOCKED:
            return  # who failed makes less of it


@given(POLICIES, looks(), st.integers(1, 10**6))
def test_a_larger_backlog_never_asks_for_fewer(policy: PoolPolicy, seen: Seen, more: int) -> None:
    seen = replace(seen, blind="")
    larger = replace(seen, waiting=seen.waiting + 1 + more // 100, waiting_tokens=seen.waiting_tokens + more)
    assert decide(larger, policy, History())[0].desired >= decide(seen, policy, History())[0].desired
    later = replace(seen, oldest_wait_s=seen.oldest_wait_s + more)
    if seen.waiting:
        assert decide(later, policy, History())[0].desired >= decide(seen, policy, History())[0].desired


@given(POLICIES, looks(), st.integers(1, 20))
def test_a_wider_max_never_gives_fewer(policy: PoolPolicy, seen: Seen, more: int) -> None:
    wider = replace(policy, max=policy.max + more)
    assert decide(seen, wider, History())[0].desired >= decide(seen, policy, History())[0].desired


@given(POLICIES, looks())
def test_one_that_waits_wakes_a_pool_from_zero(policy: PoolPolicy, seen: Seen) -> None:
    wakes = replace(seen, waiting=1, workers=(), blind="", unplaceable="", queue_paused=False)
    policy = replace(policy, max=policy.max + 1)
    decision, _ = decide(wakes, policy, History())
    assert decision.desired >= 1
    assert decision.action is Action.UP


@settings(max_examples=40)
@given(POLICIES, traces())
def test_only_failed_launches_of_ours_are_replaced_and_none_twice_in_a_row(policy: PoolPolicy, trace: list[Seen]) -> None:
    for seen, (_, decision, _) in zip(trace, play(policy, trace), strict=True):
        phases = {worker.launch: worker.phase for worker in seen.workers}
        assert len(set(decision.replace)) == len(decision.replace)
        for launch in decision.replace:
            assert launch
            assert phases[launch] in (Phase.FAILED, Phase.STARTING, Phase.LOADING)


@settings(max_examples=40)
@given(POLICIES, traces())
def test_the_same_in_the_same_out(policy: PoolPolicy, trace: list[Seen]) -> None:
    assert play(policy, trace) == play(policy, trace)
