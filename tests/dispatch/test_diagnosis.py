"""Of an engine's last lines only known diagnoses are told, and nothing that a prompt could be."""

import pytest

from dispatch.diagnosis import diagnosis


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("RuntimeError: CUDA error: misaligned address", "CUDA error: misaligned address"),
        ("torch.AcceleratorError: CUDA error: device-side assert triggered", "CUDA error: device-side assert triggered"),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB",
            "CUDA out of memory. Tried to allocate 2.50 GiB",
        ),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"),
        ("Fatal Python error: Segmentation fault", "Fatal Python error: Segmentation fault"),
        (
            "terminate called after throwing an instance of 'c10::Error'",
            "terminate called after throwing an instance of 'c10::Error'",
        ),
        ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", ""),
        ("kernel: NVRM: Xid 79: fallen off", "Xid 79"),
    ],
)
def test_a_known_diagnosis_is_told(line: str, told: str) -> None:
    assert diagnosis(["loading", line, "For debugging consider passing CUDA_LAUNCH_BLOCKING=1"]) == told


@pytest.mark.parametrize(
    "line",
    [
        "it choked on: my secret prompt",
        "CUDA error: my secret prompt",
        "Fatal Python error: my secret prompt",
        "terminate called after throwing an instance of 'my secret prompt'",
        "",
    ],
)
def test_no_other_word_is_taken(line: str) -> None:
    assert diagnosis([line]) == ""


def test_what_stands_around_a_diagnosis_stays_out() -> None:
    assert diagnosis(["my secret CUDA error: out of memory prompt"]) == "CUDA error: out of memory"


def test_it_is_said_once_and_bounded() -> None:
    assert diagnosis(["CUDA error: unknown error"] * 40) == "CUDA error: unknown error"
    assert len(diagnosis([f"Xid {n}" for n in range(999)])) == 300
