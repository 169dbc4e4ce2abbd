"""What the last lines of an engine or a worker say of its end, in words that we know beforehand. Pure.

The evidence of a death reaches every request that was beside it, and whoever looks at a pool over HTTP, so a line is never
quoted: a library may print what it works on. Of a line only what is one of these diagnoses is taken. Never here: reading lines.
"""

import re
from collections.abc import Iterable

_MOST_CHARACTERS = 300
_CUDA_ERRORS = (
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "out of memory",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error detected during the execution",
    "the launch timed out and was terminated",
    "no kernel image is available for execution on the device",
    "CUDA-capable device(s) is/are busy or unavailable",
    "no CUDA-capable device is detected",
    "CUDA driver version is insufficient for CUDA runtime version",
    "initialization error",
    "driver shutting down",
    "operation not permitted",
    "invalid device ordinal",
    "invalid argument",
    "unknown error",
)
_SAID = re.compile(
    "|".join(
        (
            r"(?:CUDA|HIP) error: (?:" + "|".join(map(re.escape, _CUDA_ERRORS)) + ")",
            r"(?:CUDA|HIP) out of memory(?:\. Tried to allocate [\d.]+ [KMGT]iB)?",
            r"\b(?:CUBLAS|CUDNN|CUSPARSE|CUSOLVER|CUFFT)_STATUS_[A-Z_]{3,40}\b",
            r"\bnccl(?:System|Internal|Unhandled|Remote|InvalidUsage|InvalidArgument)(?:Cuda)?Error\b",
            r"Fatal Python error: (?:Segmentation fault|Aborted|Bus error|Floating-point exception|Illegal instruction"
            r"|Cannot recover from stack overflow)",
            r"terminate called after throwing an instance of '(?:c10|std|torch|at|cuda)::\w{1,40}(?:::\w{1,40})?'",
            r"\bstd::bad_alloc\b",
            r"\b(?:double free or corruption|corrupted size vs\. prev_size|free\(\): invalid pointer)",
            r"\bXid \d{1,3}\b",
        )
    )
)


def diagnosis(lines: Iterable[str]) -> str:
    """Each known thing that the lines say, once, in their order; "" if they say none."""
    found = dict.fromkeys(match[0] for line in lines for match in _SAID.finditer(line))
    return "; ".join(found)[:_MOST_CHARACTERS]
