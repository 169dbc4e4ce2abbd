"""A Kubernetes API as far as the launcher uses it, with the part of its controllers that matters: which pod goes first.

The order in which pods go is the documented one of ReplicaSets: without a node, pending, not ready, lowest deletion cost, newest.
"""

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Query, Request, Response

_COST = "controller.kubernetes.io/pod-deletion-cost"


@dataclass
class StubCluster:
    """One namespace `gpu` with Deployments; `settle` is what the controllers and the kubelets do in time."""

    token: str = ""
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    capacity: int = 100
    interfere: int = 0  # so many writes find that somebody wrote before them
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def deploy(self, name: str) -> None:
        labels = {"app": name}
        meta = {"name": name, "namespace": "gpu", "resourceVersion": "1"}
        self.deployments[name] = {"metadata": meta, "spec": {"replicas": 0, "selector": {"matchLabels": labels}}}

    def settle(self) -> None:
        """Pods that were told to end end; there are as many as the replicas say, and those with a node run."""
        for pod in [p for p in self.pods.values() if "deletionTimestamp" in p["metadata"]]:
            del self.pods[pod["metadata"]["name"]]
        for name, deployment in self.deployments.items():
            mine = [p for p in self.pods.values() if p["metadata"]["labels"] == {"app": name}]
            wanted = deployment["spec"]["replicas"]
            for pod in sorted(mine, key=_goes)[: max(0, len(mine) - wanted)]:
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z"
            for _ in range(wanted - len(mine)):
                self._new_pod(name)

    def names(self) -> list[str]:
        """The pods that are not being deleted."""
        return sorted(n for n, p in self.pods.items() if "deletionTimestamp" not in p["metadata"])

    def _new_pod(self, deployment: str) -> None:
        number = next(self.numbers)
        meta = {
            "name": f"{deployment}-{number}",
            "labels": {"app": deployment},
            "creationTimestamp": f"2026-01-01T00:00:{number:02}Z",
        }
        pod: dict[str, Any] = {"metadata": meta, "spec": {}, "status": {"phase": "Pending"}}
        if len([p for p in self.pods.values() if p["spec"]]) < self.capacity:
            pod["spec"]["nodeName"] = "node-1"
            pod["status"] = {
                "phase": "Running",
                "containerStatuses": [{"ready": True, "restartCount": 0, "state": {"running": {}}}],
            }
        else:
            why = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
            pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}]
        self.pods[meta["name"]] = pod

    def app(self) -> FastAPI:
        app = FastAPI()
        deployment = "/apis/apps/v1/namespaces/gpu/deployments/{name}"

        @app.middleware("http")
        async def check(request: Request, next_: Any) -> Response:
            self.calls.append((request.method, request.url.path))
            if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
                return _status(401, "Unauthorized")
            if request.method == "PATCH" and request.headers.get("content-type") != "application/merge-patch+json":
                return _status(415, "the body of the request was in an unknown format")
            found: Response = await next_(request)
            return found

        @app.get(deployment)
        def _get(name: str) -> Any:
            return self.deployments.get(name) or _status(404, f'deployments.apps "{name}" not found')

        @app.patch(deployment)
        async def _annotate(name: str, request: Request) -> Any:
            body = await request.json()
            return self._write(name, body) or self.deployments[name]

        @app.patch(deployment + "/scale")
        async def _scale(name: str, request: Request) -> Any:
            body = await request.json()
            return self._write(name, body) or {"kind": "Scale", "spec": {"replicas": body["spec"]["replicas"]}}

        @app.get("/api/v1/namespaces/gpu/pods")
        def _list(labelSelector: str, limit: int, after: int = Query(0, alias="continue")) -> Any:
            wanted = dict(label.split("=", 1) for label in labelSelector.split(","))
            found = [p for p in self.pods.values() if wanted.items() <= p["metadata"]["labels"].items()]
            # A page may be smaller than asked for.
            page = found[after : after + min(limit, 2)]
            meta = {"continue": str(after + len(page))} if after + len(page) < len(found) else {}
            return {"metadata": meta, "items": page}

        @app.patch("/api/v1/namespaces/gpu/pods/{name}")
        async def _mark(name: str, request: Request) -> Any:
            if name not in self.pods:
                return _status(404, f'pods "{name}" not found')
            _merge(self.pods[name], await request.json())
            return self.pods[name]

        @app.delete("/api/v1/namespaces/gpu/pods/{name}")
        def _delete(name: str) -> Any:
            if name not in self.pods:
                return _status(404, f'pods "{name}" not found')
            self.pods[name]["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z"
            return self.pods[name]

        @app.get("/api/v1/namespaces/gpu/pods/{name}/log")
        def _log(name: str, previous: bool, tailLines: int) -> Response:
            return Response("loading\nCUDA is not there\n") if previous else Response("")

        return app

    def _write(self, name: str, body: dict[str, Any]) -> Response | None:
        found = self.deployments[name]
        if self.interfere:
            self.interfere -= 1
            found["metadata"]["resourceVersion"] = str(int(found["metadata"]["resourceVersion"]) + 1)
        version = body["metadata"].pop("resourceVersion", found["metadata"]["resourceVersion"])
        if version != found["metadata"]["resourceVersion"]:
            return _status(409, "the object has been modified; please apply your changes to the latest version and try again")
        _merge(found, body)
        found["metadata"]["resourceVersion"] = str(int(version) + 1)
        return None


def _goes(pod: dict[str, Any]) -> tuple[bool, bool, bool, int, int]:
    ready = any(c.get("ready") for c in pod["status"].get("containerStatuses", ()))
    cost = int(pod["metadata"].get("annotations", {}).get(_COST, 0))
    number = int(pod["metadata"]["name"].rpartition("-")[2])
    return bool(pod["spec"].get("nodeName")), pod["status"]["phase"] == "Running", ready, cost, -number


def _merge(into: dict[str, Any], patch: dict[str, Any]) -> None:
    """RFC 7396."""
    for name, value in patch.items():
        if value is None:
            into.pop(name, None)
        elif isinstance(value, dict):
            _merge(into.setdefault(name, {}), value)
        else:
            into[name] = value


def _status(code: int, message: str) -> Response:
    body = {"kind": "Status", "status": "Failure", "code": code, "message": message}
    return Response(json.dumps(body), status_code=code, media_type="application/json")
