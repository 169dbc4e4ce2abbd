"""Who goes when fewer workers are needed. Pure. Never here: how many (policy.py), how they go (reconcile.py, launchers)."""

from collections.abc import Sequence

from autoscaler.seen import Phase, SeenWorker

_ORDER = (Phase.FAILED, Phase.STARTING, Phase.LOADING, Phase.READY)


def victims(workers: Sequence[SeenWorker], n: int) -> tuple[str, ...]:
    """Up to `n` launches: the failed, then the starting and loading, newest first, then the ready with least left to do.

    Never a worker that nobody here started (launch ""), nor one that drains already.
    """
    able = [worker for worker in workers if worker.launch and worker.phase in _ORDER]
    return tuple(worker.launch for worker in sorted(able, key=_rank)[: max(0, n)])


def _rank(worker: SeenWorker) -> tuple[float, float, float, float, str]:
    if worker.phase is Phase.READY:
        return (_ORDER.index(worker.phase), worker.left_tokens, worker.held, worker.age_s, worker.launch)
    return (_ORDER.index(worker.phase), worker.age_s, 0.0, 0.0, worker.launch)
