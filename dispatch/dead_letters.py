"""A dead letter: what is kept of a request that used up its attempts or killed its workers. Pure.

Never here: reading or forgetting them (looking.py, queue.py), who may see them (gateway).
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One entry of the dead letters. `entry` is its place there; `worker` had it last; `at_ms` by Redis's clock."""

    entry: str
    request: str
    model: str
    code: str
    message: str
    charged: int
    crashes: int
    worker: str
    at_ms: int


def dead_letter_from(raw_id: bytes, fields: Mapping[bytes, bytes]) -> DeadLetter | None:
    """An entry read back; None for what nobody of ours wrote (it is passed over, the list does not die of it)."""

    def text(name: bytes) -> str:
        return fields.get(name, b"").decode()

    try:
        entry, request = raw_id.decode(), fields[b"id"].decode()
        charged, crashes = int(fields[b"charged"]), int(fields[b"crashes"])
        at_ms = int(entry.partition("-")[0])
        return DeadLetter(
            entry, request, text(b"model"), text(b"code"), text(b"message"), charged, crashes, text(b"worker"), at_ms
        )
    except (KeyError, ValueError):
        return None
