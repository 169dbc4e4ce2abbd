"""A call of somebody's HTTP API as a launcher makes it: what does not answer or refuses is a PenstockError("launcher_failed").

Never here: which calls (docker_api.py, kubernetes_api.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx2

from dispatch.errors import PenstockError

TIMEOUT_S = 20.0
MAX_LOG_BYTES = 64 * 1024
_LINE_CHARACTERS = 500


class HttpApi:
    """One server. `name` is what people call it, `hint` what they should look at; `lost` hears that it did not answer."""

    def __init__(self, client: httpx2.AsyncClient, name: str, hint: str, *, lost: Callable[[], None] = lambda: None) -> None:
        self.client = client
        self._name = name
        self._hint = hint
        self._lost = lost

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        also: Sequence[int] = (),
    ) -> httpx2.Response:
        """The answer, if it is none of an error, or one of `also`."""
        try:
            response = await self.client.request(method, path, params=params, json=body, headers=headers)
        except httpx2.HTTPError as error:
            self._lost()
            raise self.fault(f"does not answer: {error or type(error).__name__}") from error
        if response.is_error and response.status_code not in also:
            raise self.fault(f"refused {method} {path}: {response.status_code} {_message(response)}")
        return response

    def fault(self, what: str) -> PenstockError:
        """What to raise when it did something."""
        return PenstockError("launcher_failed", f"{self._name} {what}.", hint=self._hint)


def last_lines(text: str, lines: int) -> tuple[str, ...]:
    """The last lines of a log that say something."""
    return tuple(line.strip()[:_LINE_CHARACTERS] for line in text.splitlines() if line.strip())[-lines:]


def _message(response: httpx2.Response) -> str:
    try:
        return str(response.json()["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
