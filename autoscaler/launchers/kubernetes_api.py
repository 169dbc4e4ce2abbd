"""The few calls of the Kubernetes API that the kubernetes launcher makes. In a pod: its service account; else a plain URL.

Never here: what should run, what a pod's state means.
"""

import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from autoscaler.launchers.http_api import MAX_LOG_BYTES, TIMEOUT_S, HttpApi, last_lines
from dispatch.errors import PenstockError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PAGE = "500"
_MERGE = "application/merge-patch+json"
_CONFLICT, _GONE = 409, 404


class KubernetesApi:
    """One cluster. Every call raises PenstockError("launcher_failed") when it cannot be reached or refuses."""

    def __init__(self, url: str | None, *, account: Path = ACCOUNT, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not url and host:
            url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        if not url:
            raise PenstockError(
                "bad_setting",
                "The kubernetes launcher knows no cluster: this is no pod, and autoscaler.kubernetes_url is not set.",
                hint="Run the autoscaler in the cluster, or start `kubectl proxy` and set autoscaler.kubernetes_url to it.",
                param="autoscaler.kubernetes_url",
            )
        self._token = account / "token"
        verify: ssl.SSLContext | bool = True
        if url.startswith("https://") and (account / "ca.crt").is_file():
            verify = ssl.create_default_context(cafile=str(account / "ca.crt"))
        client = httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S, verify=verify, trust_env=False)
        hint = "docs/launchers.md has the Role that the autoscaler's service account needs."
        self._api = HttpApi(client, f"The Kubernetes API at {url}", hint)

    async def deployment(self, namespace: str, name: str) -> dict[str, Any]:
        """A Deployment, whole."""
        found: dict[str, Any] = (await self._send("GET", _deployment(namespace, name))).json()
        return found

    async def annotate_deployment(self, namespace: str, name: str, version: str, annotations: Mapping[str, str]) -> str | None:
        """Set annotations if it is still of that resource version; the new version, or None if it has changed since."""
        body = {"metadata": {"resourceVersion": version, "annotations": dict(annotations)}}
        done = await self._send("PATCH", _deployment(namespace, name), body=body, also=(_CONFLICT,))
        return None if done.status_code == _CONFLICT else str(done.json()["metadata"]["resourceVersion"])

    async def scale(self, namespace: str, name: str, version: str, replicas: int) -> bool:
        """Set the replicas if it is still of that resource version; False if it has changed since."""
        body = {"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}}
        done = await self._send("PATCH", _deployment(namespace, name) + "/scale", body=body, also=(_CONFLICT,))
        return done.status_code != _CONFLICT

    async def pods(self, namespace: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """All pods with these labels."""
        params = {"labelSelector": ",".join(f"{name}={value}" for name, value in labels.items()), "limit": _PAGE}
        found: list[dict[str, Any]] = []
        while True:
            page = (await self._send("GET", f"/api/v1/namespaces/{namespace}/pods", params=params)).json()
            found += page["items"]
            if not (more := page.get("metadata", {}).get("continue")):
                return found
            params["continue"] = more

    async def annotate_pod(self, namespace: str, name: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations, or remove those that are None; nothing if the pod is gone."""
        body = {"metadata": {"annotations": dict(annotations)}}
        await self._send("PATCH", f"/api/v1/namespaces/{namespace}/pods/{name}", body=body, also=(_GONE,))

    async def delete_pod(self, namespace: str, name: str) -> None:
        """End a pod in its own grace period; nothing if it is gone."""
        await self._send("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", also=(_GONE,))

    async def last_words(self, namespace: str, name: str, lines: int) -> tuple[str, ...]:
        """The last lines its container wrote before it last ended; none if they may not be read."""
        params = {"previous": "true", "tailLines": str(lines), "limitBytes": str(MAX_LOG_BYTES)}
        try:
            told = await self._send("GET", f"/api/v1/namespaces/{namespace}/pods/{name}/log", params=params)
        except PenstockError:
            return ()
        return last_lines(told.text, lines)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._api.client.aclose()

    async def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        also: Sequence[int] = (),
    ) -> httpx2.Response:
        headers = {"Accept": "application/json, */*"}
        if self._token.is_file():
            # Read each time: the kubelet replaces it long before it expires.
            headers["Authorization"] = f"Bearer {self._token.read_text().strip()}"
        if body is not None:
            headers["Content-Type"] = _MERGE
        return await self._api.send(method, path, params=params, body=body, headers=headers, also=also)


def _deployment(namespace: str, name: str) -> str:
    return f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"
