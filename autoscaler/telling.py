"""Which decisions get an entry in the log: every change and every new reason at once, of equal ones one a minute. Pure.

Never here: writing it.
"""

from dataclasses import dataclass, replace

from dispatch.scaling import Action, DecisionRecord

_EVERY_MS = 60_000


@dataclass(slots=True)
class Telling:
    """Of one pool."""

    last: DecisionRecord | None = None
    silent: int = 0

    def entry(self, record: DecisionRecord, *, tell: bool) -> DecisionRecord | None:
        """The entry for this decision, or None: it is one more like the last told; the next entry says how many there were."""
        last = self.last
        same = last is not None and (record.action, record.policy, record.to_workers) == (
            last.action,
            last.policy,
            last.to_workers,
        )
        changes = record.action in (Action.UP, Action.DOWN)
        if last is not None and same and not changes and not tell and record.at_ms - last.at_ms < _EVERY_MS:
            self.silent += 1
            return None
        told = replace(record, repeated=self.silent)
        self.last, self.silent = record, 0
        return told
