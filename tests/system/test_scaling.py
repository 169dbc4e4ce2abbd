"""A fleet that scales itself, as processes: a burst onto none while the leader is killed; workers retired under streams."""

import time

from bench import burst, retire
from bench.asking import client, records, submit_all, told
from bench.scale_checks import judge
from bench.scale_watch import watching
from bench.scaled import GIB, ScaledFleet, scaled_fleet, until
from dispatch.reports import ModelCard


async def test_a_burst_onto_none_loses_nothing_though_the_leader_is_killed() -> None:
    pools = {burst.POOL: burst.pool(3, need_bytes=20 * GIB, idle_timeout_s=2, down_window_s=0)}
    quick = {"PENSTOCK_AUTOSCALER__LEASE_S": "2"}
    # As if a worker had run long ago: one that went just now would be a turn, and the next turn is a minute later.
    card = ModelCard(burst.POOL, "sim", context_tokens=131_072, kv_bytes_per_token=131_072, max_cost_tokens=42_000)
    async with scaled_fleet(pools, autoscalers=2, agents=2, cards=[card], environment=quick) as fleet:
        async with watching(fleet.url, {burst.POOL: burst.POOL}) as watch, client() as http:

            def at_zero() -> bool:
                last = watch.last(burst.POOL)
                return last is not None and not (last.there or last.desired or last.waiting or last.running or fleet.orphans())

            await until(lambda: at_zero() and watch.samples[-1].leader, "a leader, and the fleet to be at zero", 30)
            began = time.time()
            bodies = [{"model": "demo", "prompt": f"burst {n}", "max_tokens": 30, "ignore_eos": True} for n in range(60)]
            ids = await submit_all(http, fleet.gateway, bodies)
            await until(lambda: watch.samples[-1].at > began and watch.samples[-1].running, "the burst to be worked on", 30)
            leader = watch.samples[-1].leader
            await until(lambda: fleet.kill(_slot_of(leader, fleet)), "the leader to be killed", 5)
            await until(lambda: watch.samples[-1].leader not in ("", leader), "another one to lead", 20)
            await until(at_zero, "the fleet to be at zero again", 40)
            found = told(await records(http, fleet.gateway, ids))
        assert found["completed"] == 60, found
        assert found["charged attempts"] == 0, found
        verdict = judge(watch, [], began)
        assert not verdict.violations
        assert verdict.epochs >= 2
        for name in sorted(fleet.slots, reverse=True):
            await fleet.stop(name)
        assert not fleet.living(), "nothing outlives those who were told to end"


def _slot_of(leader: str, fleet: ScaledFleet) -> str:
    pid = int(leader.split("-")[-2])
    return next(name for name, slot in fleet.slots.items() if slot.pid == pid)


async def test_workers_retired_under_streams_break_none() -> None:
    run = await retire.run(60, every_s=3.0)
    assert run.retired >= 2, "somebody was retired while streams were open"
    assert all(stream.whole and stream.tokens == retire._TOKENS for stream in run.streams)
    found = told(run.records)
    assert found["completed"] == 60
    assert found["charged attempts"] == 0
    assert not run.leftovers
