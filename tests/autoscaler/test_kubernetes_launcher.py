"""The kubernetes launcher on a stub of the API: no cluster is at hand. The stub's order of deletion is the documented one."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from autoscaler.launchers import pods
from autoscaler.launchers.kubernetes import EPOCH, KubernetesLauncher, deployments
from autoscaler.launchers.registry import BUILDERS, build
from dispatch.errors import PenstockError
from dispatch.scaling import Launch, LauncherName, LaunchState, Orders, PoolOrders
from dispatch.settings import Settings
from tests.autoscaler.engines import serving_http
from tests.autoscaler.kubernetes_stub import StubCluster
from tests.ports import free_port

MADE_AT_S = 1767225600.0  # 2026-01-01T00:00:00Z


class Clock:
    now_s = MADE_AT_S + 60

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def cluster() -> StubCluster:
    found = StubCluster()
    found.deploy("llm")
    return found


@pytest.fixture
async def make(cluster: StubCluster, tmp_path: Path) -> AsyncIterator[Callable[..., KubernetesLauncher]]:
    made: list[KubernetesLauncher] = []
    async with serving_http(cluster.app()) as url:

        def launcher(clock: Clock | None = None) -> KubernetesLauncher:
            (tmp_path / "token").write_text("account-token\n")
            settings = settings_with({"p": {"deployment": "gpu/llm"}}, kubernetes_url=url)
            made.append(KubernetesLauncher(settings, account=tmp_path, environment={}, now_s=clock or Clock()))
            return made[-1]

        yield launcher
        for each in made:
            await each.close()


def settings_with(pools: dict[str, Any], **more: Any) -> Settings:
    return Settings.model_validate({"autoscaler": {"launcher": "kubernetes", "pools": pools, **more}})


def orders(*ids: str, retiring: tuple[str, ...] = (), epoch: int = 1) -> Orders:
    return Orders("main", epoch, (PoolOrders("p", "demo", tuple(Launch(i, "p") for i in ids), retiring),))


async def test_replicas_follow_and_the_pods_are_the_launches(
    cluster: StubCluster, make: Callable[..., KubernetesLauncher]
) -> None:
    cluster.token = "account-token"
    hands = make()
    assert hands.names_itself
    for _ in range(2):
        await hands.apply(orders("new-1", "new-2"))
        cluster.settle()
    assert cluster.names() == ["llm-1", "llm-2"]
    told = await hands.reports()
    assert {i: (r.state, r.pool, r.host, r.since_ms) for i, r in told.items()} == {
        "llm-1": (LaunchState.RUNNING, "p", "node-1", int(MADE_AT_S * 1000) + 1000),
        "llm-2": (LaunchState.RUNNING, "p", "node-1", int(MADE_AT_S * 1000) + 2000),
    }
    await hands.apply(orders("llm-1", "llm-2"))
    cluster.settle()
    assert cluster.names() == ["llm-1", "llm-2"]
    scalings = [path for method, path in cluster.calls if method == "PATCH" and path.endswith("/scale")]
    assert len(scalings) == 1


async def test_the_one_that_drains_is_the_one_that_goes_and_only_when_it_is_done(
    cluster: StubCluster, make: Callable[..., KubernetesLauncher]
) -> None:
    hands = make()
    await hands.apply(orders("1", "2", "3"))
    cluster.settle()
    assert (await hands.reports()).keys() == {"llm-1", "llm-2", "llm-3"}  # more than a page
    drains = orders("llm-1", "llm-2", "llm-3", retiring=("llm-1",))
    await hands.apply(drains)
    cluster.settle()
    assert cluster.names() == ["llm-1", "llm-2", "llm-3"]  # it drains, and stays
    assert cluster.pods["llm-1"]["metadata"]["annotations"] == {pods.DELETION_COST: pods.LOWEST_COST}
    await hands.apply(orders("llm-2", "llm-3"))
    assert (await hands.reports())["llm-1"].state is LaunchState.STOPPING  # at once: nobody takes it over again
    cluster.settle()
    assert cluster.names() == ["llm-2", "llm-3"]  # without its annotation the newest would have gone


async def test_a_drain_that_is_taken_back_is_forgotten(cluster: StubCluster, make: Callable[..., KubernetesLauncher]) -> None:
    hands = make()
    await hands.apply(orders("1", "2"))
    cluster.settle()
    await hands.apply(orders("llm-1", "llm-2", retiring=("llm-1",)))
    await hands.apply(orders("llm-1", "llm-2"))
    assert cluster.pods["llm-1"]["metadata"]["annotations"] == {}
    await hands.apply(orders("llm-1"))  # the other one goes now
    cluster.settle()
    assert cluster.names() == ["llm-1"]


async def test_a_victim_that_the_cluster_spared_is_ended_by_name(
    cluster: StubCluster, make: Callable[..., KubernetesLauncher]
) -> None:
    clock = Clock()
    hands = make(clock)
    await hands.apply(orders("1", "2"))
    cluster.settle()
    cluster.pods["llm-2"]["status"]["containerStatuses"][0]["ready"] = False  # it goes first, whatever its cost
    await hands.apply(orders("llm-2"))
    cluster.settle()
    assert cluster.names() == ["llm-1"]
    await hands.apply(orders("llm-2"))
    cluster.settle()
    assert cluster.names() == ["llm-1"]
    clock.now_s += 10
    await hands.apply(orders("llm-2"))
    assert cluster.names() == []
    cluster.settle()
    assert cluster.names() == ["llm-3"]


async def test_a_new_pod_that_the_orders_do_not_know_yet_is_kept(
    cluster: StubCluster, make: Callable[..., KubernetesLauncher]
) -> None:
    hands = make()
    await hands.apply(orders("1", "2"))
    cluster.settle()
    await hands.apply(orders("llm-1", "awaited"))
    cluster.settle()
    assert cluster.names() == ["llm-1", "llm-2"]
    assert "annotations" not in cluster.pods["llm-2"]["metadata"]


async def test_a_replaced_leader_is_refused_by_the_deployment(
    cluster: StubCluster, make: Callable[..., KubernetesLauncher]
) -> None:
    await make().apply(orders("1", epoch=7))
    assert cluster.deployments["llm"]["metadata"]["annotations"][EPOCH] == "7"
    with pytest.raises(PenstockError) as error:
        await make().apply(orders(epoch=6))
    assert error.value.code == "stale_orders"
    assert cluster.deployments["llm"]["spec"]["replicas"] == 1


async def test_a_write_that_was_overtaken_looks_again(cluster: StubCluster, make: Callable[..., KubernetesLauncher]) -> None:
    cluster.interfere = 3
    await make().apply(orders("1"))
    assert cluster.deployments["llm"]["spec"]["replicas"] == 1
    cluster.interfere = 100
    with pytest.raises(PenstockError, match="changed 5 times"):
        await make().apply(orders("1", "2"))


async def test_a_pod_without_a_node_is_said_at_once_and_given_up_late(
    cluster: StubCluster, make: Callable[..., KubernetesLauncher]
) -> None:
    clock = Clock()
    cluster.capacity = 1
    hands = make(clock)
    await hands.apply(orders("1", "2"))
    cluster.settle()
    told = await hands.reports()
    assert {i: r.state for i, r in told.items()} == {"llm-1": LaunchState.RUNNING, "llm-2": LaunchState.STARTING}
    assert "Insufficient nvidia.com/gpu" in told["llm-2"].error
    assert "Insufficient nvidia.com/gpu" in await hands.unplaceable("p", 0)
    assert await hands.unplaceable("other", 0) == ""
    clock.now_s += pods.NODE_WAIT_S
    assert (await hands.reports())["llm-2"].state is LaunchState.REFUSED
    del cluster.pods["llm-2"]
    await hands.reports()
    clock.now_s += 59
    assert await hands.unplaceable("p", 0)
    clock.now_s += 2
    assert await hands.unplaceable("p", 0) == ""


def container(reason: str = "", restarts: int = 0, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}} if reason else {"running": {}}
    last = {"terminated": {"reason": "OOMKilled", "exitCode": 137}} if restarts else {}
    return {"restartCount": restarts, "state": state, "lastState": last}


@pytest.mark.parametrize(
    ("status", "state", "error"),
    [
        (
            {"phase": "Running", "containerStatuses": [container("CrashLoopBackOff", 2)]},
            LaunchState.BACKOFF,
            "OOMKilled, exit code 137",
        ),
        (
            {"phase": "Running", "containerStatuses": [container("CrashLoopBackOff", 7)]},
            LaunchState.CRASH_LOOP,
            "OOMKilled, exit code 137",
        ),
        ({"phase": "Running", "containerStatuses": [container("", 1)]}, LaunchState.RUNNING, "OOMKilled, exit code 137"),
        (
            {"phase": "Pending", "containerStatuses": [container("ImagePullBackOff", 0, "no such tag")]},
            LaunchState.REFUSED,
            "ImagePullBackOff: no such tag",
        ),
        ({"phase": "Pending", "containerStatuses": [container("ContainerCreating")]}, LaunchState.STARTING, ""),
        ({"phase": "Pending"}, LaunchState.STARTING, ""),
        ({"phase": "Failed", "reason": "Evicted", "message": "disk pressure"}, LaunchState.GONE, "Evicted disk pressure"),
    ],
)
async def test_what_a_pod_says_of_its_worker(
    cluster: StubCluster, make: Callable[..., KubernetesLauncher], status: dict[str, Any], state: LaunchState, error: str
) -> None:
    hands = make()
    await hands.apply(orders("1"))
    cluster.settle()
    cluster.pods["llm-1"]["status"] = status
    told = (await hands.reports())["llm-1"]
    assert (told.state, told.error) == (state, error)
    restarts = status.get("containerStatuses", [container()])[0]["restartCount"]
    assert told.exits == restarts
    assert told.last_words == (("loading", "CUDA is not there") if restarts else ())
    await hands.reports()
    assert len([path for _, path in cluster.calls if path.endswith("/log")]) == (1 if restarts else 0)


async def test_a_refusal_of_the_api_is_told_with_its_words(cluster: StubCluster, make: Callable[..., KubernetesLauncher]) -> None:
    cluster.token = "another"
    with pytest.raises(PenstockError, match="401 Unauthorized"):
        await make().reports()
    cluster.token = ""
    del cluster.deployments["llm"]
    with pytest.raises(PenstockError, match=r'404 deployments\.apps "llm" not found'):
        await make().apply(orders("1"))


async def test_no_api_there(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    hands = KubernetesLauncher(
        settings_with({"p": {"deployment": "gpu/llm"}}, kubernetes_url=url), account=tmp_path, environment={}
    )
    with pytest.raises(PenstockError, match="does not answer"):
        await hands.reports()
    await hands.close()
    with pytest.raises(PenstockError, match="knows no cluster"):
        KubernetesLauncher(settings_with({}), account=tmp_path, environment={})
    in_cluster = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(free_port())}
    hands = KubernetesLauncher(settings_with({"p": {"deployment": "gpu/llm"}}), account=tmp_path, environment=in_cluster)
    with pytest.raises(PenstockError, match=f"https://127.0.0.1:{in_cluster['KUBERNETES_SERVICE_PORT']} does not answer"):
        await hands.reports()
    await hands.close()


async def test_each_pool_has_a_deployment_of_its_own(cluster: StubCluster, make: Callable[..., KubernetesLauncher]) -> None:
    assert deployments(settings_with({"a": {}, "b": {"launcher": "exec"}}, deployment="n/d")) == {"a": ("n", "d")}
    for pools in ({"a": {}, "b": {}}, {"a": {"deployment": "no-namespace"}}):
        with pytest.raises(PenstockError, match=r"autoscaler\.pools"):
            deployments(settings_with(pools, deployment="n/d"))
    with pytest.raises(PenstockError, match="has no Deployment"):
        await make().apply(Orders("main", 1, (PoolOrders("q", "demo"), *orders("1").pools)))
    assert cluster.deployments["llm"]["spec"]["replicas"] == 1  # one pool's trouble is not the others'


async def test_launchers_are_found_by_name(tmp_path: Path) -> None:
    settings = Settings.model_validate({"autoscaler": {"script": "/bin/true", "kubernetes_url": "http://127.0.0.1:1"}})
    for name in (LauncherName.DOCKER, LauncherName.EXEC, LauncherName.KUBERNETES):
        built = build(name, settings)
        assert type(built).__name__.lower() == f"{name}launcher"
        await built.close()
    for name in set(LauncherName) - set(BUILDERS):
        with pytest.raises(PenstockError, match="cannot be started here"):
            build(name, settings)
