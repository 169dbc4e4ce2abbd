"""`python -m worker.gpu_report`: one line of JSON about this machine's devices, again and again. For the host's agent.

A process of its own: NVML is spoken in gpu.py alone, and a driver that hangs must hang nobody else. It dies with its parent.
Never here: what to make of the numbers.
"""

import sys
import time

import msgspec

from dispatch.processes import die_with_parent
from worker.gpu import HOST, HostMemory, find_gpus


def main(every_s: float) -> None:
    """Until the parent is gone. GPUs first; the host's own memory is the device "host"."""
    die_with_parent()
    gpus, host = find_gpus(), HostMemory()
    while True:
        found = [device for device in gpus.devices() if device.uuid != HOST]
        sys.stdout.write(msgspec.json.encode([*found, *host.devices()]).decode() + "\n")
        sys.stdout.flush()
        time.sleep(every_s)


if __name__ == "__main__":
    try:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(0)
