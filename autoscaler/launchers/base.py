"""The autoscaler's hands: the port every launcher fills, and when a worker that died is started again (pure).

Never here: how many workers there should be (policy), how a process or container is made (one file a launcher).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dispatch.scaling import LaunchReport, Orders

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
HEALTHY_LIFE_S = 10.0
_MOST_FAILURES = 6
_USAGE = 2


@dataclass(frozen=True, slots=True)
class Launched:
    """A worker that was started. `name` is the launcher's word for it and stays the same over restarts."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a process. `code` is negative for a signal, as subprocess has it."""

    name: str
    pid: int
    code: int
    lived_s: float

    def __str__(self) -> str:
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"ended with code {self.code}"
        return f"{self.name} {how} after {self.lived_s:.1f} s"


class Launcher(Protocol):
    """Carries out orders in one place. Level-triggered: `apply` is told all that should be, again and again.

    `names_itself`: it gives its workers names of its own (a Deployment's pods); their heartbeats carry those as launch ids, and
    `reports` is then the list of what runs.
    """

    names_itself: bool

    async def apply(self, orders: Orders) -> None:
        """Start what is missing, end what is not named (a drain first, bounded; then a kill). Returns soon; may be repeated.

        Orders of an older epoch than the last ones are refused. Raises PenstockError when the place cannot be reached.
        """
        ...

    async def reports(self) -> Mapping[str, LaunchReport]:
        """What it knows of each launch, by id; also of those that are to go. Raises PenstockError as `apply` does."""
        ...

    async def unplaceable(self, pool: str, need_bytes: int) -> str:
        """Why one more worker of that pool could not be placed now, for people; "" if it could, or nobody knows."""
        ...

    async def close(self) -> None:
        """Let go of connections. What runs goes on, unless it is bound to this process."""
        ...


@runtime_checkable
class Assigns(Protocol):
    """A launcher with several places: it says where each launch goes, before the orders are written."""

    async def assign(self, orders: Orders) -> Orders:
        """The same orders with every `host` that can be given; one that fits nowhere stays ""."""
        ...


@runtime_checkable
class DiesWithUs(Protocol):
    """A launcher whose workers are bound to this process: what was ordered before it began is gone, whatever the orders say."""

    dies_with_us: bool


@dataclass(frozen=True, slots=True)
class Restarts:
    """How often something failed in a row, and so how long to wait. A value: `after` gives the next one."""

    failures: int = 0

    def after(self, end: Exit) -> "Restarts":
        """With one more end; a healthy life before it forgets the ones before."""
        return Restarts(1 if end.lived_s >= HEALTHY_LIFE_S else self.failures + 1)

    def delay_s(self, end: Exit) -> float | None:
        """How long to wait before the next start; None: starting it again would not help."""
        if end.code == _USAGE or self.failures > _MOST_FAILURES:
            return None
        return float(min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** (self.failures - 1)))
