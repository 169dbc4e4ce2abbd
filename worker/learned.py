"""What a worker learns of the lengths of answers, to be told to the fleet. Pure. Never here: Redis, requests."""

from collections.abc import Iterable

from dispatch.lengths import Counts
from worker.growth import Growth


class Learned:
    """Counts each answer's growth once, while it runs and when its attempt is over."""

    def __init__(self) -> None:
        self.counts = Counts()

    def look(self, growths: Iterable[Growth]) -> None:
        """Count what those that run have said by now: else the quick ones alone would make the picture."""
        for growth in growths:
            self._reached(growth)

    def ended(self, growth: Growth) -> None:
        """An attempt is over. Only an answer that ended by itself says where answers end."""
        self._reached(growth)
        if growth.is_text and growth.ended_by_itself and growth.spoken_tokens:
            self.counts.ended(growth.spoken_tokens)
            growth.ended_by_itself = False

    def _reached(self, growth: Growth) -> None:
        if growth.is_text and growth.spoken_tokens > growth.told_tokens:
            self.counts.reached(growth.told_tokens, growth.spoken_tokens)
            growth.told_tokens = growth.spoken_tokens
