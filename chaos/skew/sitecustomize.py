"""A wrong wall clock for a process that was started with this folder on its PYTHONPATH.

Python imports this file by itself. Only Redis's clock may count, so a worker whose clock is an hour off must harm nobody.
Never here: anything else.
"""

import os
import time

_offset_s = float(os.environ.get("CHAOS_CLOCK_SKEW_S", "0"))
if _offset_s:
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _offset_s
    time.time_ns = lambda: _time_ns() + int(_offset_s * 1e9)
