"""Which replicas a promise has to reach: all that stood beside this master lately. Pure.

One that left a moment ago may be the next master, made by a failover that this server has not heard of: what it did not get
is lost. So it counts for a while longer, and nothing is promised without it; one that died costs that while, and no more.
Never here: asking and waiting (batching.py).
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

WINDOW_S = 5.0
"""How long one that left still counts: longer than clients need to hear of a failover (sentinel.py looks each second)."""

_STANDS_LAG_S = 1
"""They speak each second. A silent one is called online for a minute, but does not stand; the window bridges a hiccup."""

_HISTORIES = 8
_Replica = tuple[str, str, int]


class Replicas:
    """What INFO REPLICATION said. Each history has its own: two masters may answer in turn while a failover goes on."""

    def __init__(self) -> None:
        self.needed = 1
        self._histories: OrderedDict[str, _Window] = OrderedDict()

    def saw(self, info: Mapping[str, Any], now: float) -> int:
        """Take in what a server says of itself; how many must have a write for it to be safe there. 0: it is no master.

        `needed` is the last such number, at least one.
        """
        if info.get("role") != "master":
            return 0
        history = str(info.get("master_replid", ""))
        window = self._histories.setdefault(history, _Window())
        self._histories.move_to_end(history)
        while len(self._histories) > _HISTORIES:
            self._histories.popitem(last=False)
        self.needed = max(1, window.saw(_standing(info), now))
        return self.needed


class _Window:
    """Who stood beside one master lately."""

    def __init__(self) -> None:
        self._until: dict[_Replica, float] = {}  # until when each counts
        self._there: frozenset[_Replica] = frozenset()  # who stood there when last seen

    def saw(self, there: frozenset[_Replica], now: float) -> int:
        # Nobody looked meanwhile: who stood there when last seen may have left this very moment.
        for replica in self._there | there:
            self._until[replica] = now + WINDOW_S
        self._there = there
        self._until = {replica: until for replica, until in self._until.items() if until > now}
        return len(self._until)


def _standing(info: Mapping[str, Any]) -> frozenset[_Replica]:
    found: dict[tuple[str, str], int] = {}
    for name, replica in info.items():
        if not (name.startswith("slave") and isinstance(replica, Mapping)) or replica.get("state") != "online":
            continue
        try:
            lag_s = int(replica.get("lag", 0))
        except ValueError:
            lag_s = 0
        if lag_s <= _STANDS_LAG_S:
            place = (str(replica.get("ip", "")), str(replica.get("port", "")))
            found[place] = found.get(place, 0) + 1  # behind one address there may be several
    return frozenset((*place, n) for place, count in found.items() for n in range(count))
