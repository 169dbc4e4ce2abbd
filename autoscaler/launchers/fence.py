"""Orders of an older epoch than the last ones come from a leader that was replaced: they are refused. Pure.

Never here: how an epoch is told beyond this process (labels and annotations: each launcher's file).
"""

from dispatch.errors import PenstockError
from dispatch.scaling import Orders


class Fence:
    """The highest epoch seen."""

    def __init__(self) -> None:
        self.epoch = 0

    def check(self, orders: Orders, *, seen: int = 0) -> None:
        """Raises PenstockError for a stale one. `seen`: an epoch found written at the place itself."""
        newest = max(self.epoch, seen)
        if orders.epoch < newest:
            raise PenstockError(
                "stale_orders",
                f"Orders of epoch {orders.epoch} for {orders.group!r} were refused: epoch {newest} has begun.",
                hint="Another autoscaler leads this group now; nothing needs to be done.",
            )
        self.epoch = orders.epoch
