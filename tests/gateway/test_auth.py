"""Keys: default-deny on every route but health and metrics, tenants that do not see each other, no open bind."""

import re

import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Route

from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.queue import Queue
from dispatch.settings import GatewaySettings, Settings
from gateway.app import build
from gateway.auth import check_bind
from gateway.routes import ops
from gateway.serve import serve
from tests.gateway.helpers import MODEL, FakeWorker, Running, serving, settings_for

KEYS = ("first-key-of-tests", "second-key-of-tests")
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


def routes_of(routes: list[BaseRoute]) -> list[APIRoute | Route]:
    found: list[APIRoute | Route] = []
    for route in routes:
        if isinstance(route, APIRoute | Route):
            found.append(route)
        else:
            inner = getattr(route, "original_router", None)
            assert inner is not None, f"a route this test cannot judge: {route!r}"
            found.extend(routes_of(list(inner.routes)))
    return found


async def test_every_route_but_health_needs_a_key(redis: object, server_url: str) -> None:
    settings = settings_for(server_url, keys=KEYS)
    async with serving(settings) as gateway:
        known = build_paths(settings)
        assert {"/v1/requests", "/v1/chat/completions", "/v1/workers", "/livez"} <= {path for path, _ in known}
        for path, method in known:
            address = re.sub(r"\{[^}]*\}", "x", path)
            open_to_all = path in ops.PATHS
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEYS[0]}"}, {"X-Api-Key": KEYS[0]}):
                answer = await gateway.client.request(method, address, headers=headers)
                assert (answer.status_code == 401) != open_to_all, (method, path, answer.status_code)
                if not open_to_all:
                    assert answer.json()["error"]["code"] == "unauthorized" and "www-authenticate" in answer.headers
        for odd in ("Bearer " + "x" * 6000, "Bearer %00", "Bearer", f"Bearer {KEYS[0]}x", f"Bearer {KEYS[0][:-1]}"):
            answer = await gateway.client.get("/v1/requests", headers={"Authorization": odd})
            assert answer.status_code == 401, odd[:30]
        for key in KEYS:
            assert (await gateway.client.get("/v1/requests", headers={"Authorization": f"bearer {key}"})).status_code == 200


def build_paths(settings: Settings) -> list[tuple[str, str]]:
    routes = routes_of(list(build(settings).routes))
    return [(route.path, method) for route in routes for method in (route.methods or set()) - {"HEAD", "OPTIONS"}]


async def test_another_tenants_request_does_not_exist(redis: object, server_url: str, worker: FakeWorker) -> None:
    async with serving(settings_for(server_url, keys=KEYS)) as gateway:
        mine, other = ({"Authorization": f"Bearer {key}"} for key in KEYS)
        request = (await gateway.client.post("/v1/requests", json=CHAT, headers=mine)).json()["id"]
        assert (await gateway.client.get(f"/v1/requests/{request}?wait=5", headers=mine)).json()["status"] == "completed"
        unknown = "s0." + "0" * 32
        for method, page in (
            ("GET", ""),
            ("GET", "/events"),
            ("GET", "/result"),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("POST", "/retry"),
        ):
            theirs = await gateway.client.request(method, f"/v1/requests/{request}{page}", headers=other)
            nobodys = await gateway.client.request(method, f"/v1/requests/{unknown}{page}", headers=other)
            assert theirs.status_code == nobodys.status_code == 404, (method, page)
            assert theirs.json()["error"]["code"] == nobodys.json()["error"]["code"]
        assert (await gateway.client.get("/v1/requests", headers=other)).json()["data"] == []
        assert len((await gateway.client.get("/v1/requests", headers=mine)).json()["data"]) == 1
        # Keys of idempotency belong to a tenant, too.
        for headers in (mine, other):
            answer = await gateway.client.post("/v1/requests", json=CHAT, headers={**headers, "Idempotency-Key": "same"})
            assert "idempotency-replayed" not in answer.headers


async def test_a_purge_takes_only_what_is_the_keys_own(redis: object, server_url: str, queue: Queue, fleet: Fleet) -> None:
    await FakeWorker(queue, fleet).publish()
    async with serving(settings_for(server_url, keys=KEYS)) as gateway:
        mine, other = ({"Authorization": f"Bearer {key}"} for key in KEYS)
        ids = [(await gateway.client.post("/v1/requests", json=CHAT, headers=h)).json()["id"] for h in (mine, mine, other)]
        answer = await gateway.client.post("/v1/queues/demo/purge", headers=mine)
        assert answer.json()["removed"] == 2
        states = [
            (await gateway.client.get(f"/v1/requests/{request}", headers=h)).json()["status"]
            for request, h in zip(ids, (mine, mine, other), strict=True)
        ]
    assert states == ["cancelled", "cancelled", "queued"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_open_address_needs_keys(host: str) -> None:
    with pytest.raises(PenstockError) as refused:
        serve(Settings(gateway=GatewaySettings(host=host, port=0)))
    assert (
        refused.value.code == "bad_setting"
        and refused.value.param == "gateway.host"
        and "PENSTOCK_API_KEYS" in refused.value.hint
    )
    check_bind(Settings(api_keys=(KEYS[0],), gateway=GatewaySettings(host=host)))  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_is_open_without_keys(host: str) -> None:
    check_bind(Settings(gateway=GatewaySettings(host=host)))


async def test_without_keys_everything_is_open_on_loopback(gateway: Running) -> None:
    assert (await gateway.client.get("/v1/requests")).status_code == 200
