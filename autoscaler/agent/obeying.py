"""Which orders count, and whether they may end what runs: Redis can come back empty, or with an older past. Pure.

Never here: reading orders, carrying them out.
"""

from dataclasses import dataclass
from enum import StrEnum

from dispatch.scaling import Leadership, Orders

REWOUND_S = 10.0
"""How long a leader must have led before orders that lack what runs are believed: the time to hear of it and adopt it."""


class Verdict(StrEnum):
    """What becomes of orders."""

    NOTHING = "nothing"  # what runs goes on
    KEEPING = "keeping"  # what is missing is started, and nobody is ended
    WHOLLY = "wholly"


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose orders are carried out wholly: a leader's, of one epoch, in one history of Redis's data."""

    epoch: int = 0
    history: str = ""


class Obedience:
    """What an agent believes. `epoch`: of the newest orders it carried out, ever."""

    def __init__(self, rewound_s: float = REWOUND_S) -> None:
        self.epoch = 0
        self.trust = Trust()
        self._rewound_s = rewound_s
        self._doubted = Trust()
        self._since: float | None = None

    @property
    def doubts(self) -> bool:
        """Whether it waits for a leader to lead on."""
        return self._since is not None

    def remember(self, epoch: int, trust: Trust) -> None:
        """What the last agent believed."""
        self.epoch, self.trust = epoch, trust

    def judge(self, orders: Orders, history: str, leadership: Leadership, *, lacking: bool, now: float) -> Verdict:
        """`lacking`: something runs here that these orders do not name. Whoever names all that runs is believed at once, if its
        epoch is not an older one; and so is the one who was believed before. Others must lead on for a while."""
        if not orders.epoch:
            # Redis forgot them: who writes the next ones may not know what runs, whatever their epoch.
            self.trust, self._since = Trust(), None
            return Verdict.NOTHING
        found = Trust(orders.epoch, history)
        if orders.epoch >= self.epoch and (found == self.trust or not lacking or not self.epoch):
            return self._believe(found)
        if not leadership.leads or leadership.epoch != orders.epoch:
            self._since = None
        elif self._since is None or self._doubted != found:
            self._since, self._doubted = now, found
        elif now - self._since >= self._rewound_s:
            return self._believe(found)
        if orders.epoch < self.epoch:
            return Verdict.NOTHING
        self.epoch = orders.epoch
        return Verdict.KEEPING

    def _believe(self, found: Trust) -> Verdict:
        self.epoch, self.trust, self._since = found.epoch, found, None
        return Verdict.WHOLLY
