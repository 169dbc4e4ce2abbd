"""What a job carries: a signed order to do one of a few things, for one host, until a moment. Pure.

The signature answers for who may ring: Redis is shared by more programs than the autoscaler. Never here: RQ, what an
operation does.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

MOST_BYTES = 64 * 1024
"""The largest job, packed or not."""

_LABEL = b"penstock jobs 1"


class Op(StrEnum):
    """All that a job may ask for."""

    RECONCILE = "reconcile"
    WEBHOOK = "webhook"


class JobRefused(Exception):
    """A job that is not carried out. RQ keeps the text with the failed job: it never holds what was in it."""


@dataclass(frozen=True, slots=True)
class Payload:
    """One job. `host` "": any may do it. `epoch`: of the orders it speaks of, 0 for none. `body`: small, and never a prompt."""

    op: Op
    host: str
    epoch: int
    expires_at_ms: int
    body: Mapping[str, Any] = field(default_factory=dict)


def key_of(secret: str) -> bytes:
    """The key that signs jobs, from the secret of the settings, which may sign other things under another label."""
    return hmac.new(secret.encode(), _LABEL, hashlib.sha256).digest()


def seal(payload: Payload, key: bytes) -> str:
    """The payload as signed text."""
    said = msgspec.json.encode(payload)
    return f"{_mark(said, key)}.{said.decode()}"


def unseal(text: object, key: bytes | None, *, op: str, host: str, now_ms: int) -> Payload:
    """What was signed, if this host may do it now under that name. Raises JobRefused."""
    if key is None:
        raise JobRefused("This agent has no agent.secret: it takes no jobs, and looks at its orders by itself.")
    if not isinstance(text, str):
        raise JobRefused("The job carries something else than one signed text.")
    mark, _, said = text.partition(".")
    try:
        right = hmac.compare_digest(mark.encode(), _mark(said.encode(), key).encode())
    except UnicodeEncodeError:
        right = False
    if not right:
        raise JobRefused("The job's signature is not ours: agent.secret differs, or somebody forged it.")
    try:
        payload = msgspec.json.decode(said, type=Payload)
    except msgspec.DecodeError as error:
        raise JobRefused("The job was signed by another version.") from error
    if payload.op != op:
        raise JobRefused("The job was signed for another operation than the one it names.")
    if payload.host not in ("", host):
        raise JobRefused("The job was signed for another host.")
    if now_ms >= payload.expires_at_ms:
        raise JobRefused("The job came too late: it has expired.")
    return payload


def _mark(said: bytes, key: bytes) -> str:
    return hmac.new(key, said, hashlib.sha256).hexdigest()
