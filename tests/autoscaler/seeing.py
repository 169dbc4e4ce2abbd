"""What the tests of the policy show it."""

from collections.abc import Iterable

from autoscaler.policy import Decision, History, PoolPolicy, decide
from autoscaler.seen import Phase, Seen, SeenWorker

BEGIN_S = 1_800_000_000.0


def workers(
    count: int, phase: Phase = Phase.READY, *, age_s: float = 100.0, first: int = 0, left: int = 0
) -> tuple[SeenWorker, ...]:
    return tuple(SeenWorker(f"{phase}-{first + n}", phase, age_s, tokens_per_s=100.0, left_tokens=left) for n in range(count))


def seen(at_s: float, there: Iterable[SeenWorker] = (), **more: object) -> Seen:
    """One worker makes 100 tokens/s."""
    return Seen(at_s=BEGIN_S + at_s, workers=tuple(there), **{"tokens_per_s_each": 100.0, **more})  # type: ignore[arg-type]


def played(policy: PoolPolicy, looks: Iterable[Seen], history: History | None = None) -> tuple[list[Decision], History]:
    """One decision after the other."""
    history, found = history or History(), []
    for look in looks:
        decision, history = decide(look, policy, history)
        found.append(decision)
    return found, history
