"""The few calls of the Docker Engine API that the docker launcher makes, over a unix socket or HTTP.

Never here: what should run.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2

from autoscaler.launchers.http_api import MAX_LOG_BYTES, TIMEOUT_S, HttpApi, last_lines
from dispatch.errors import PenstockError

_KNOWN = (1, 41)
_LEAST = (1, 40)
"""The first with DeviceRequests."""
_FRAME_HEADER_BYTES = 8
_CONFLICT, _GONE, _AS_IT_IS = 409, 404, 304


class DockerApi:
    """One engine. Every call raises PenstockError("launcher_failed") when it cannot be reached or refuses."""

    def __init__(self, host: str) -> None:
        scheme, _, rest = host.partition("://")
        if scheme == "unix":
            transport = httpx2.AsyncHTTPTransport(uds=rest)
            client = httpx2.AsyncClient(transport=transport, base_url="http://docker", timeout=TIMEOUT_S)
        elif scheme in ("http", "https", "tcp"):
            base = host.replace("tcp://", "http://", 1)
            client = httpx2.AsyncClient(base_url=base, timeout=TIMEOUT_S, trust_env=False)
        else:
            raise PenstockError(
                "bad_setting",
                f"{host!r} is no address of a Docker engine.",
                hint="autoscaler.docker_host is unix:///path, http://host:port or https://host:port.",
                param="autoscaler.docker_host",
            )
        hint = "Look whether the engine runs (`docker info`) and this process may use it; autoscaler.docker_host names it."
        self._api = HttpApi(client, f"The Docker engine at {host}", hint, lost=self._lose)
        self._version = ""
        self.name = ""

    async def containers(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Every container with these labels, also those that ended: as the engine lists them."""
        filters = json.dumps({"label": [f"{name}={value}" for name, value in labels.items()]})
        listed = await self._ask("GET", "/containers/json", params={"all": "true", "filters": filters})
        found: list[dict[str, Any]] = listed.json()
        return found

    async def create(self, name: str, body: Mapping[str, Any]) -> str | None:
        """Its id; None when there is one of that name already."""
        made = await self._ask("POST", "/containers/create", params={"name": name}, body=body, also=(_CONFLICT,))
        return None if made.status_code == _CONFLICT else str(made.json()["Id"])

    async def inspect(self, container: str) -> dict[str, Any] | None:
        """All about one; None if it is gone."""
        found = await self._ask("GET", f"/containers/{container}/json", also=(_GONE,))
        value: dict[str, Any] | None = None if found.status_code == _GONE else found.json()
        return value

    async def start(self, container: str) -> None:
        """Start it; nothing if it runs."""
        await self._ask("POST", f"/containers/{container}/start", also=(_AS_IT_IS,))

    async def signal(self, container: str, name: str) -> None:
        """Send a signal; nothing if it does not run."""
        await self._ask("POST", f"/containers/{container}/kill", params={"signal": name}, also=(_GONE, _CONFLICT))

    async def remove(self, container: str) -> None:
        """Remove one that ended; nothing if it is gone or just going."""
        await self._ask("DELETE", f"/containers/{container}", also=(_GONE, _CONFLICT))

    async def last_words(self, container: str, lines: int) -> tuple[str, ...]:
        """The last lines it wrote."""
        await self._negotiate()
        params = {"stdout": "true", "stderr": "true", "tail": str(lines)}
        raw = bytearray()
        try:
            async with self._api.client.stream("GET", f"{self._version}/containers/{container}/logs", params=params) as response:
                if response.is_error:
                    return ()
                async for piece in response.aiter_bytes():
                    raw += piece
                    if len(raw) > MAX_LOG_BYTES:
                        break
        except httpx2.HTTPError:
            return ()
        return last_lines(frames(bytes(raw)).decode("utf-8", "replace"), lines)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._api.client.aclose()

    def _lose(self) -> None:
        self._version = ""  # whoever answers next may be another release

    async def _negotiate(self) -> None:
        if self._version:
            return
        told = (await self._api.send("GET", "/version")).json()
        most, least = _version(told.get("ApiVersion", "1.0")), _version(told.get("MinAPIVersion", "1.0"))
        if most < _LEAST:
            raise self._api.fault(f"speaks API {told.get('ApiVersion')}; GPUs can be reserved from {_dotted(_LEAST)} on")
        self.name = str((await self._api.send("GET", "/info")).json().get("Name", ""))
        self._version = "/v" + _dotted(max(least, min(most, _KNOWN)))

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        also: Sequence[int] = (),
    ) -> httpx2.Response:
        await self._negotiate()
        return await self._api.send(method, self._version + path, params=params, body=body, also=also)


def frames(raw: bytes) -> bytes:
    """What a container without a terminal wrote, without the 8-byte header of each piece; a cut last piece as far as it goes."""
    found, at = bytearray(), 0
    while at + _FRAME_HEADER_BYTES <= len(raw):
        begin = at + _FRAME_HEADER_BYTES
        at = begin + int.from_bytes(raw[begin - 4 : begin], "big")
        found += raw[begin:at]
    return bytes(found)


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
