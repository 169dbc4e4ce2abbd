"""Fewer rounds of the garbage collector in a process that answers thousands of requests a second. Never here: what makes garbage.

A request makes some hundred objects that reference counts free at its end. With hundreds of them open the collector's usual
pace looks through all again and again (docs/decisions/0026).
"""

import gc

_OBJECTS_BEFORE_A_ROUND = 10_000


def rarely_collect() -> None:
    """Called once all is imported and built: that is never looked through again, and the young only when there are many."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BEFORE_A_ROUND, *gc.get_threshold()[1:])
