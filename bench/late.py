"""What late binding would bring: an experiment on the simulator, beside what the scripts do today.

Today a request is granted as soon as any worker has KV room, and then waits its turn inside that worker. Here a worker with
more than `GATE_S` of prompts to prefill takes no more; a request that another worker would serve more than `SLACK` times
better waits for that one; and of those that wait, a prompt token makes `YOUNGER` / (the fleet's prompt tokens/s) seconds younger.

`python -m bench.late --trace FILE` prints the table in bench/results/simulated.md. Never here: what the scripts do.
"""

import argparse
import heapq
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.simulated import FLEETS, PACES, TROUBLES, long_prompts, mark, paced, run
from dispatch import scores
from dispatch.scores import Load, Need
from penstock.simulator.batching import Job
from penstock.simulator.fleet import Member, fleet_of
from penstock.simulator.meeting import Meeting
from penstock.simulator.report import Row, Slo, row_of
from penstock.simulator.simulation import Simulation
from penstock.simulator.state import Conditions, Trouble
from penstock.simulator.trace import Arrival, made_up, read_trace, repeated

GATE_S = 0.6
SLACK = 2.0
YOUNGER = 16.0
_WINDOW = 64


def is_open(load: Load) -> bool:
    """Whether it takes more prompts."""
    return load.prefill_tokens < GATE_S * scores.prefill_speed(load)


class Late:
    """The lowest score among the open; nobody, if one that is not open would be so much better."""

    def __init__(self) -> None:
        self._loads: dict[int, Load] = {}

    def put(self, place: int, load: Load) -> None:
        self._loads[place] = load

    def leave(self, place: int) -> None:
        self._loads.pop(place, None)

    def choose(self, need: Need) -> int | None:
        able = self._ranked(need, is_open)
        if not able or min(able)[0] > SLACK * min(self._ranked(need))[0]:
            return None
        return min(able)[2]

    def suits(self, place: int, need: Need) -> bool:
        """Whether nobody with room would be so much better than this one."""
        return scores.pull(self._loads[place], need.prompt_tokens) <= SLACK * min(self._ranked(need))[0]

    def _ranked(self, need: Need, may: Callable[[Load], bool] = lambda load: True) -> list[tuple[float, str, int]]:
        """As `pull` compares them: the first few with room by the standing score."""
        able = [
            (scores.standing(load), place)
            for place, load in self._loads.items()
            if scores.has_room(load, need.cost_tokens) and may(load)
        ]
        first = heapq.nsmallest(scores.CANDIDATES, able)
        return [(scores.pull(self._loads[place], need.prompt_tokens), self._loads[place].worker, place) for _, place in first]


class LateSimulation(Simulation):
    """`pull`, bound late."""

    def __init__(self, trace: Sequence[Arrival], fleet: Sequence[Member], conditions: Conditions) -> None:
        self._younger_s = YOUNGER / sum(m.gpu.prefill_tokens_per_s for m in fleet)
        self._late = Late()
        super().__init__(trace, fleet, "pull", conditions)

    def _meeting_for(self, strategy: str) -> Meeting:
        return self._late

    def _order(self, job: Job) -> float:
        return job.arrival.at_s + self._younger_s * job.arrival.prompt_tokens

    def room_grew(self, place: int, now: float) -> None:
        """It takes of the first in line what fits and suits it, while it is open."""
        w, line = self.workers[place], self._line
        if not line or not w.parked:
            return
        head = [line.popleft() for _ in range(min(_WINDOW, len(line)))]
        taken = set()
        for job in sorted(head, key=self._order):
            need = Need(job.arrival.prompt_tokens, job.cost)
            if is_open(w.load) and scores.has_room(w.load, job.cost) and self._late.suits(place, need):
                self._grant(job, place, now)
                taken.add(job.index)
        line.extendleft(job for job in reversed(head) if job.index not in taken)

    def _step(self, now: float, place: int, tag: int) -> None:
        before = self.workers[place].load.prefill_tokens
        super()._step(now, place, tag)
        if self.workers[place].load.prefill_tokens < before:
            self.room_grew(place, now)


def late(trace: Sequence[Arrival], fleet: Sequence[Member], *troubles: Trouble) -> Row:
    """The figures of one run."""
    return row_of("late", LateSimulation(trace, fleet, Conditions(troubles=troubles)).run(), fleet, Slo())


def _bound_row(name: str, trace: Sequence[Arrival], fleet_name: str, pace: str, load: float, burst_s: float) -> str:
    fleet = fleet_of(FLEETS[fleet_name])
    arrivals = paced(trace, fleet, load, burst_s)
    oracle, pull, greedy = (run(arrivals, fleet, strategy) for strategy in ("oracle", "pull", "greedy"))
    found = late(arrivals, fleet)
    cells = []
    for row in (pull, found):
        of_greedy = row.e2e_mean_s / greedy.e2e_mean_s
        cells += [
            mark(row.e2e_mean_s / oracle.e2e_mean_s, 1.05),
            mark(row.ttft_p99_s / oracle.ttft_p99_s, 1.0 if burst_s else 0.6),
            mark(of_greedy, 0.6) if pace == "0.85" else f"{of_greedy:.2f}",
        ]
    return f"| {name} | {fleet_name} | {pace} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", required=True, type=Path)
    parser.add_argument("--requests", type=int, default=4_000)
    args = parser.parse_args()
    count = args.requests
    public = read_trace(args.trace)
    rest = [Arrival(a.at_s - public[count].at_s, a.prompt_tokens, a.answer_tokens) for a in public[count : 2 * count]]
    traces = {"code": public[:count], "conversation": made_up(count, 1)}
    others = {
        "code, its second half *": rest,
        **{f"conversation, seed {seed} *": made_up(count, seed) for seed in (2, 3, 4, 99)},
        "documents *": long_prompts(count, 5),
    }
    print(
        "| trace | fleet | load | pull: mean | p99 first token | mean / greedy | late: mean | p99 first token | mean / greedy |"
    )
    print("|---" * 9 + "|")
    for name, trace in {**traces, **others}.items():
        for fleet_name in ("6", "36"):
            for pace, load, burst_s in PACES if name in traces else PACES[:3]:
                print(_bound_row(name, trace, fleet_name, pace, load, burst_s), flush=True)
    print("\n| trace, fleet of 6 | load | mean, calm | one dies each minute | one frozen for 10 s |\n|---|---|---|---|---|")
    for name, trace in traces.items():
        for spell, load, _ in PACES[:2]:
            fleet = fleet_of(FLEETS["6"])
            arrivals = paced(repeated(trace, 3 * count), fleet, load, 0.0)
            calm = late(arrivals, fleet).e2e_mean_s
            ratios = [mark(late(arrivals, fleet, trouble).e2e_mean_s / calm, 1.2) for trouble in TROUBLES.values()]
            print(f"| {name} | {spell} | {calm:.2f} s | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
