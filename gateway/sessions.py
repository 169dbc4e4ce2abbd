"""What a request belongs to, so that the strategy `session` can keep it with its like. Pure.

A client's word for it is never stored: only its hash, the tenant in it, so that tenants cannot meet in one session.
Never here: what follows from it (dispatch/scores.py).
"""

import hashlib
from collections.abc import Mapping

from dispatch.errors import PenstockError
from gateway.fields import MAX_SESSION_CHARACTERS, NativeFields, Sampled, Spoken

HEADER = "x-penstock-session"
_DIGITS = 32


def session_of(headers: Mapping[str, str], fields: Sampled, tenant: str) -> str:
    """The session a client names, hashed; "" if it names none. Its body wins on the native API, its header on the OpenAI API.

    OpenAI's clients say `prompt_cache_key`, older ones `user`.
    """
    named = headers.get(HEADER, "")
    if len(named) > MAX_SESSION_CHARACTERS:
        raise PenstockError(
            "invalid_request", f"{HEADER}: longer than {MAX_SESSION_CHARACTERS} characters.", hint="Send a UUID.", param=HEADER
        )
    if isinstance(fields, NativeFields):
        named = fields.session or named
    elif isinstance(fields, Spoken):
        named = named or fields.prompt_cache_key or (fields.user if isinstance(fields.user, str) else "")
    return hashed("session", named, tenant)


def hashed(kind: str, name: str, tenant: str) -> str:
    """A session's name as it is stored; "" for no name."""
    if not name:
        return ""
    return hashlib.sha256(f"{kind}\0{tenant}\0{name}".encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]
