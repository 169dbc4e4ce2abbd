"""Who may ask: API keys as bearer tokens, default-deny. A dependency on routers, never a middleware that compares paths.

The tenant of a request is a short hash of its key ("" when no keys are configured): what belongs to another tenant does
not exist. Never here: roles, quotas (later), where keys come from (dispatch/settings.py).
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Request

from dispatch.errors import PenstockError
from dispatch.settings import Settings

_TENANT_CHARACTERS = 12
_MAX_HEADER = 1024


class Keys:
    """The configured keys, kept as digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @property
    def open(self) -> bool:
        """Whether everybody may ask (no keys: loopback only, see `check_bind`)."""
        return not self._digests

    def tenant(self, authorization: str) -> str | None:
        """The tenant of an Authorization header's value, None if its key is not one of ours."""
        if self.open:
            return ""
        scheme, _, key = authorization[:_MAX_HEADER].partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        known = False
        for ours in self._digests:  # always all of them: the time must not tell which one was near
            known |= hmac.compare_digest(ours, digest)
        if not known or scheme.lower() != "bearer":
            return None
        return digest.hex()[:_TENANT_CHARACTERS]


def tenant_of(http_request: Request) -> str:
    """The tenant of whoever asks. Raises PenstockError("unauthorized")."""
    keys: Keys = http_request.app.state.keys
    tenant = "" if keys.open else keys.tenant(http_request.headers.get("authorization", ""))
    if tenant is None:
        raise PenstockError(
            "unauthorized",
            "The API key is missing or not one of this server's.",
            hint="Send `Authorization: Bearer <key>` with one of the keys in PENSTOCK_API_KEYS.",
        )
    return tenant


async def authenticated(http_request: Request) -> str:
    """The same as a dependency. Async: the framework runs others in threads."""
    return tenant_of(http_request)


Tenant = Annotated[str, Depends(authenticated)]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(settings: Settings) -> None:
    """Raises PenstockError("bad_setting") when the gateway would be open to others without a key."""
    if settings.api_keys or is_loopback(settings.gateway.host):
        return
    raise PenstockError(
        "bad_setting",
        f"The gateway will not listen on {settings.gateway.host} without API keys: anyone who can reach it could use it.",
        hint="Set PENSTOCK_API_KEYS (comma-separated), or listen on 127.0.0.1.",
        param="gateway.host",
    )
