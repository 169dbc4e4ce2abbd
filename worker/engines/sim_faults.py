"""Faults that prompts ask the sim engine for, where `worker.sim_faults` allows it: so that tests can break an engine for real.

Never here: the engine's step loop (sim.py).
"""

import os
import signal
from enum import StrEnum

from dispatch.messages import InferenceRequest

STEPS_BEFORE = 3
"""How many tokens an attempt says before its fault strikes: others are then in the same step."""
SLOWER = 100.0


class Fault(StrEnum):
    """What a prompt with this word makes the engine do."""

    CRASH = "[[crash]]"  # segfault
    HANG = "[[hang]]"  # make no step any more, for nobody
    OUT_OF_MEMORY = "[[oom]]"  # fail this request as CUDA would
    GARBAGE = "[[garbage]]"  # from then on, the canary's tokens are wrong
    SLOW = "[[slow]]"  # 100 times slower while it is open


def fault_in(request: InferenceRequest) -> Fault | None:
    """The first fault its prompt asks for."""
    said = " ".join([request.prompt, *(str(message.get("content", "")) for message in request.messages)])
    return next((fault for fault in Fault if fault.value in said), None)


def crash() -> None:
    """End this process as a bad pointer would."""
    os.kill(os.getpid(), signal.SIGSEGV)
