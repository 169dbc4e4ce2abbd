"""A Docker engine in a hundred lines, as its API documents it: for what no engine here can do, and where there is none.

The same tests run against it and against a real engine, so it is as faithful as they are.
"""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response

_ZERO = "0001-01-01T00:00:00Z"


@dataclass
class StubEngine:
    """`images`: what a container of each does: obedient, stubborn, failing or usage. `calls` are all paths asked for."""

    images: dict[str, str]
    version: str = "1.41"
    least: str = "1.12"
    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    clock: int = 0

    def app(self) -> FastAPI:
        app = FastAPI()
        prefix = "/v{version}"

        @app.middleware("http")
        async def note(request: Request, next_: Any) -> Response:
            self.calls.append(f"{request.method} {request.url.path}")
            found: Response = await next_(request)
            return found

        @app.get("/version")
        def _version() -> dict[str, str]:
            return {"ApiVersion": self.version, "MinAPIVersion": self.least}

        @app.get("/info")
        def _info() -> dict[str, str]:
            return {"Name": "stub-host"}

        @app.get(prefix + "/containers/json")
        def _list(filters: str, all: bool = False) -> list[dict[str, Any]]:
            wanted = dict(label.split("=", 1) for label in json.loads(filters)["label"])
            return [
                {"Id": c["Id"], "State": c["State"]["Status"], "Labels": c["Config"]["Labels"], "Names": [f"/{c['Name']}"]}
                for c in self.containers.values()
                if wanted.items() <= c["Config"]["Labels"].items() and (all or c["State"]["Running"])
            ]

        @app.post(prefix + "/containers/create", status_code=201)
        async def _create(name: str, request: Request) -> Any:
            body = await request.json()
            if any(c["Name"] == name for c in self.containers.values()):
                return _error(409, f"Conflict. The container name {name!r} is already in use")
            if body["Image"] not in self.images:
                return _error(404, f"No such image: {body['Image']}")
            made = {"Id": secrets.token_hex(32), "Name": name, "Config": body, "HostConfig": body["HostConfig"], "Log": b""}
            made["State"] = {"Status": "created", "Running": False, "Pid": 0, "ExitCode": 0, "Error": "", "OOMKilled": False}
            made["State"] |= {"StartedAt": _ZERO, "FinishedAt": _ZERO}
            self.containers[made["Id"]] = made
            return {"Id": made["Id"], "Warnings": []}

        @app.get(prefix + "/containers/{key}/json")
        def _inspect(key: str) -> Any:
            return {n: v for n, v in self.containers[key].items() if n != "Log"} if key in self.containers else _missing(key)

        @app.post(prefix + "/containers/{key}/start", status_code=204)
        def _start(key: str) -> Response:
            if key not in self.containers:
                return _missing(key)
            state = self.containers[key]["State"]
            if state["Running"]:
                return Response(status_code=304)
            state |= {"Status": "running", "Running": True, "Pid": 4000 + self.clock, "StartedAt": self._now()}
            self._log(key, 1, b"up\n")
            kind = self.images[self.containers[key]["Config"]["Image"]]
            if kind in ("failing", "usage"):
                self._log(key, 2, b"no model there\n")
                self.end(key, 3 if kind == "failing" else 2)
            return Response(status_code=204)

        @app.post(prefix + "/containers/{key}/kill", status_code=204)
        def _kill(key: str, signal: str) -> Response:
            if key not in self.containers:
                return _missing(key)
            if not self.containers[key]["State"]["Running"]:
                return _error(409, f"Container {key} is not running")
            obeys = self.images[self.containers[key]["Config"]["Image"]] == "obedient"
            if signal == "SIGKILL" or obeys:
                self.end(key, 137 if signal == "SIGKILL" else 0)
            return Response(status_code=204)

        @app.delete(prefix + "/containers/{key}", status_code=204)
        def _remove(key: str) -> Response:
            if key not in self.containers:
                return _missing(key)
            if self.containers[key]["State"]["Running"]:
                return _error(409, "You cannot remove a running container")
            del self.containers[key]
            return Response(status_code=204)

        @app.get(prefix + "/containers/{key}/logs")
        def _logs(key: str) -> Response:
            return Response(self.containers[key]["Log"], media_type="application/vnd.docker.raw-stream")

        return app

    def end(self, key: str, code: int) -> None:
        """The container's process ends."""
        self.containers[key]["State"] |= {"Status": "exited", "Running": False, "Pid": 0, "ExitCode": code}
        self.containers[key]["State"] |= {"FinishedAt": self._now()}

    def _now(self) -> str:
        self.clock += 1
        return f"2026-01-01T00:{self.clock // 60:02}:{self.clock % 60:02}.123456789Z"

    def _log(self, key: str, stream: int, text: bytes) -> None:
        self.containers[key]["Log"] += bytes([stream, 0, 0, 0]) + len(text).to_bytes(4, "big") + text


def _error(status: int, message: str) -> Response:
    return Response(json.dumps({"message": message}), status_code=status, media_type="application/json")


def _missing(key: str) -> Response:
    return _error(404, f"No such container: {key}")
