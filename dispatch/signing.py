"""Signatures of webhooks, as Standard Webhooks have them. Pure.

Never here: what is signed (webhooks.py), where the secret comes from (settings_scale.py).
"""

import base64
import binascii
import hashlib
import hmac

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)


def secret_bytes(secret: str) -> bytes:
    """The key in a `whsec_<base64>` secret. Raises ValueError, which does not repeat it."""
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or len(key) not in _KEY_BYTES:
        raise ValueError(f"is not whsec_ and the base64 of {_KEY_BYTES.start} to {_KEY_BYTES.stop - 1} random bytes")
    return key


def signed(key: bytes, event: str, at_s: int, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks."""
    mark = hmac.new(key, f"{event}.{at_s}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": event,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1,{base64.b64encode(mark).decode()}",
    }
