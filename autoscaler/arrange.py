"""From a number of workers to the very workers: who is added, who drains, who is kept, who goes. Pure.

Never here: how many there should be (policy.py), how one is started or ended (launchers).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from autoscaler.seen import Phase, SeenWorker
from autoscaler.victims import victims
from dispatch.scaling import Launch, LaunchReport, LaunchState, PoolOrders

_CAPACITY = (Phase.STARTING, Phase.LOADING, Phase.READY)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The next orders of a pool, and what changes by them: launch ids."""

    orders: PoolOrders
    added: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()  # told to drain now
    kept: tuple[str, ...] = ()  # drained, and needed again
    ended: tuple[str, ...] = ()  # nothing left to do: to be ended now
    replaced: tuple[str, ...] = ()  # they failed, or went with their host


def arrange(
    orders: PoolOrders,
    workers: Sequence[SeenWorker],
    reports: Mapping[str, LaunchReport],
    desired: int,
    failed: Iterable[str],
    make: Callable[[], Launch],
    *,
    blocked: bool = False,
) -> Arrangement:
    """Orders that have `desired` workers. `failed` are launches to give up; `make` makes the order for one more worker.

    Who drains goes when it holds nothing more. Who drains and is needed again is kept before one is added. What never became
    a worker has nothing to finish: it goes at once. Who failed is none of the `desired` and keeps its place until it is given up,
    or until none is wanted (`blocked` False) at all: else one that cannot start would be tried again with every tick.
    """
    desired -= sum(1 for worker in workers if not worker.launch and worker.phase in _CAPACITY)
    seen = {worker.launch: worker for worker in workers if worker.launch}
    gone = {launch.id for launch in orders.launches if _is_gone(reports.get(launch.id))}
    replaced = gone | (set(failed) & seen.keys())
    if desired <= 0 and not blocked:
        replaced |= {name for name, worker in seen.items() if worker.phase is Phase.FAILED}
    left = [launch for launch in orders.launches if launch.id not in replaced]
    retiring = [name for name in orders.retiring if any(launch.id == name for launch in left)]
    ended = {name for name in retiring if _has_nothing_left(seen.get(name))}
    left = [launch for launch in left if launch.id not in ended]
    retiring = [name for name in retiring if name not in ended]

    broken = {name for name, worker in seen.items() if worker.phase is Phase.FAILED}
    active = [launch.id for launch in left if launch.id not in retiring and launch.id not in broken]
    kept: list[str] = []
    added: list[Launch] = []
    retired: tuple[str, ...] = ()
    if len(active) < desired:
        # The last to be told has the most left to do, and is warm.
        kept = retiring[::-1][: desired - len(active)]
        added = [make() for _ in range(desired - len(active) - len(kept))]
    elif len(active) > max(0, desired):
        retired = victims([seen[name] for name in active if name in seen], len(active) - max(0, desired))
    at_once = {name for name in retired if seen[name].phase in (Phase.STARTING, Phase.LOADING)}
    launches = tuple(launch for launch in left if launch.id not in at_once) + tuple(added)
    drains = tuple(name for name in (*retiring, *retired) if name not in kept and name not in at_once)
    return Arrangement(
        orders=replace(orders, launches=launches, retiring=drains),
        added=tuple(launch.id for launch in added),
        retired=tuple(name for name in retired if name not in at_once),
        kept=tuple(kept),
        ended=tuple(sorted(ended | at_once)),
        replaced=tuple(sorted(replaced)),
    )


def adopt(
    orders: PoolOrders, reports: Mapping[str, LaunchReport], template: Launch, *, names_itself: bool, known: bool
) -> PoolOrders:
    """Orders that have what runs. Where the hands name their workers, those names take the places of the orders'; elsewhere
    workers without orders are taken over only while orders are not `known`: Redis forgot them. `template` is an order of this
    pool: it says what was ordered where the hands do not."""
    here = [
        r for _, r in sorted(reports.items()) if r.pool == orders.pool and r.state not in (LaunchState.GONE, LaunchState.STOPPING)
    ]
    before = {launch.id: launch for launch in orders.launches}
    found = {
        r.id: before.get(r.id)
        or replace(
            template,
            id=r.id,
            host=r.host,
            ordered_at_ms=r.since_ms,
            worker=r.worker or template.worker,
            need_bytes=r.need_bytes or template.need_bytes,
        )
        for r in here
    }
    if names_itself:
        awaited = [launch for launch in orders.launches if launch.id not in reports][: max(0, len(before) - len(found))]
        launches = (*found.values(), *awaited)
    elif not known:
        launches = tuple({**before, **found}.values())
    else:
        return orders
    names = {launch.id for launch in launches}
    return replace(orders, launches=launches, retiring=tuple(name for name in orders.retiring if name in names))


def _is_gone(report: LaunchReport | None) -> bool:
    return report is not None and report.state is LaunchState.GONE


def _has_nothing_left(worker: SeenWorker | None) -> bool:
    return worker is None or worker.phase is Phase.FAILED or worker.drained
