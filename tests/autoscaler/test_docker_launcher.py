"""The docker launcher, on a stub of the engine's API and on a real engine where one can be started.

No GPU is at hand: that a reservation has the documented form is seen on the stub, that an engine without GPUs refuses it
on the real one.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoscaler.launchers.docker import DockerLauncher
from autoscaler.launchers.docker_api import DockerApi, frames
from dispatch.errors import PenstockError
from dispatch.scaling import Launch, LaunchReport, LaunchState, Orders, PoolOrders
from dispatch.settings import Settings
from tests.autoscaler.docker_stub import StubEngine
from tests.autoscaler.engines import ENTRYPOINTS, docker_engine, serving

REDIS_URL = "redis://:the-password@redis:6379/0"


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_engine(tmp_path_factory.mktemp("docker")) as address:
        yield address


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[StubEngine]:
    engine = StubEngine({f"penstock-test:{name}": name for name in ENTRYPOINTS})
    async with serving(engine.app(), tmp_path / "stub.sock"):
        yield engine


@pytest.fixture(params=["stub", "real"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "real":
        found: str = request.getfixturevalue("real")
        return found
    request.getfixturevalue("stub")
    return f"unix://{tmp_path / 'stub.sock'}"


def settings(address: str, image: str = "obedient", gpus: str = "none", **more: Any) -> Settings:
    autoscaler = {"docker_host": address, "image": f"penstock-test:{image}", "docker_gpus": gpus, "docker_network": "none"}
    worker = {"drain_timeout_s": 30, "upstream_api_key": "upstream-key"}
    return Settings.model_validate(
        {
            "redis": {"url": REDIS_URL},
            "autoscaler": autoscaler | more,
            "worker": worker,
            "api_keys": ["client-key"],
            "agent": {"secret": "the-bells-own-secret"},
        }
    )


def orders(*ids: str, epoch: int = 1, **worker: str) -> Orders:
    return Orders("main", epoch, (PoolOrders("p", "demo", tuple(Launch(i, "p", worker) for i in ids)),))


@pytest.fixture
async def launcher(address: str) -> AsyncIterator[Callable[..., DockerLauncher]]:
    """Makes launchers. Whatever they left is removed afterwards."""
    made: list[DockerLauncher] = []

    def make(clock: Clock | None = None, **more: Any) -> DockerLauncher:
        made.append(DockerLauncher(settings(address, **more), environment={"HF_TOKEN": "hub-token"}, now_s=clock or Clock()))
        return made[-1]

    yield make
    api = DockerApi(address)
    for container in await api.containers({"penstock.group": "main"}):
        await api.signal(container["Id"], "SIGKILL")
        await until(lambda c=container: removed(api, c["Id"]))
    for each in (*made, api):
        await each.close()


async def removed(api: DockerApi, container: str) -> bool:
    await api.remove(container)
    return await api.inspect(container) is None


async def until(condition: Callable[[], Any], timeout_s: float = 15.0) -> Any:
    give_up_at = time.monotonic() + timeout_s
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < give_up_at, "it did not happen"
        await asyncio.sleep(0.03)


async def state_of(launcher: DockerLauncher, name: str, state: LaunchState) -> LaunchReport | None:
    report = (await launcher.reports()).get(name)
    return report if report is not None and report.state is state else None


async def test_containers_are_started_once_adopted_and_ended(launcher: Callable[..., DockerLauncher], address: str) -> None:
    first = launcher()
    await first.apply(orders("a", "b", engine="sim"))
    told = await until(lambda: both_run(first))
    assert told["a"].host
    assert all(report.pid > 0 and report.since_ms > 0 and report.pool == "p" for report in told.values())
    api = DockerApi(address)
    ids = {c["Id"] for c in await api.containers({"penstock.group": "main"})}
    assert len(ids) == 2

    second = launcher()  # the autoscaler was restarted, and leads anew
    assert {report.worker["engine"] for report in (await second.reports()).values()} == {"sim"}, "known without any orders"
    await second.apply(orders("a", "b", epoch=2, engine="sim"))
    assert {c["Id"] for c in await api.containers({"penstock.group": "main"})} == ids
    assert (await second.reports()).keys() == {"a", "b"}

    details = await api.inspect(sorted(ids)[0])
    assert details is not None
    variables = dict(line.split("=", 1) for line in details["Config"]["Env"])
    name = details["Config"]["Labels"]["penstock.launch"]
    assert (
        details["Config"]["Labels"] | {"penstock.group": "main", "penstock.pool": "p", "penstock.epoch": "1"}
        == details["Config"]["Labels"]
    )
    assert (variables["PENSTOCK_WORKER__LAUNCH"], variables["PENSTOCK_WORKER__POOL"]) == (name, "p")
    assert (variables["PENSTOCK_WORKER__ENGINE"], variables["PENSTOCK_REDIS__URL"]) == ("sim", REDIS_URL)
    assert (variables["PENSTOCK_WORKER__UPSTREAM_API_KEY"], variables["HF_TOKEN"]) == ("upstream-key", "hub-token")
    assert "client-key" not in str(variables) and "the-bells-own-secret" not in str(variables)
    assert details["HostConfig"]["RestartPolicy"]["Name"] == "no"
    assert details["HostConfig"]["NetworkMode"] == "none"
    assert details["HostConfig"]["Mounts"][0]["Target"] == "/home/penstock/.cache/huggingface"
    assert details["Config"]["StopTimeout"] == 40

    await second.apply(orders("b", epoch=2))
    assert await until(lambda: only(second, orders("b", epoch=2), {"b"}))
    await until(lambda: only(second, orders(epoch=2), set()))
    assert await api.containers({"penstock.group": "main"}) == []
    await api.close()


async def both_run(launcher: DockerLauncher) -> Any:
    told = await launcher.reports()
    return told if [r.state for r in told.values()] == [LaunchState.RUNNING] * 2 else None


async def only(launcher: DockerLauncher, wanted: Orders, names: set[str]) -> bool:
    await launcher.apply(wanted)
    return (await launcher.reports()).keys() == names


async def test_what_does_not_end_is_killed_after_its_time(launcher: Callable[..., DockerLauncher]) -> None:
    clock = Clock()
    hands = launcher(clock, image="stubborn")
    await hands.apply(orders("a"))
    await until(lambda: state_of(hands, "a", LaunchState.RUNNING))
    await hands.apply(orders())
    clock.now_s += 39.9  # drain_timeout_s and kill_after_s make 40
    await hands.apply(orders())
    assert await state_of(hands, "a", LaunchState.STOPPING)
    clock.now_s += 0.2
    await until(lambda: only(hands, orders(), set()))


async def test_what_fails_waits_longer_each_time_until_the_circuit_opens(launcher: Callable[..., DockerLauncher]) -> None:
    clock = Clock()
    hands = launcher(clock, image="failing")
    await hands.apply(orders("a"))
    told = await until(lambda: state_of(hands, "a", LaunchState.BACKOFF))
    assert (told.exits, told.pid) == (1, 0)
    assert "ended with code 3" in told.error
    assert set(told.last_words) == {"up", "no model there"}
    for exits in range(2, 8):
        await hands.apply(orders("a"))
        assert (await hands.reports())["a"].exits == exits - 1  # not yet due
        clock.now_s += 30
        await hands.apply(orders("a"))
        told = await until(lambda n=exits: ended(hands, "a", n))
    assert told.state is LaunchState.CRASH_LOOP
    clock.now_s += 1000
    await hands.apply(orders("a"))
    assert (await hands.reports())["a"].exits == 7


async def ended(launcher: DockerLauncher, name: str, exits: int) -> LaunchReport | None:
    report = (await launcher.reports())[name]
    return report if report.exits == exits and report.pid == 0 else None


async def test_bad_settings_are_not_tried_again(launcher: Callable[..., DockerLauncher]) -> None:
    hands = launcher(image="usage")
    await hands.apply(orders("a"))
    assert "code 2" in (await until(lambda: state_of(hands, "a", LaunchState.CRASH_LOOP))).error


async def test_a_replaced_leader_is_refused_by_what_runs(launcher: Callable[..., DockerLauncher]) -> None:
    await launcher().apply(orders("a", epoch=7))
    with pytest.raises(PenstockError, match="epoch 7 has begun") as error:
        await launcher().apply(orders(epoch=6))
    assert error.value.code == "stale_orders"
    assert (await launcher().reports()).keys() == {"a"}


async def test_what_cannot_be_made_is_said_and_not_tried_at_each_tick(launcher: Callable[..., DockerLauncher]) -> None:
    clock = Clock()
    hands = launcher(clock, image="never-built")
    for _ in range(3):
        await hands.apply(orders("a"))
    told = (await hands.reports())["a"]
    assert told.state is LaunchState.REFUSED
    assert "No such image" in told.error
    assert "No such image" in await hands.unplaceable("p", 0)
    assert await hands.unplaceable("other", 0) == ""
    await hands.apply(orders())
    assert await hands.reports() == {}
    assert await hands.unplaceable("p", 0) == ""


@pytest.mark.parametrize("name", ["upstream_api_key", "no_such"])
async def test_orders_with_secrets_or_unknown_settings_are_refused(launcher: Callable[..., DockerLauncher], name: str) -> None:
    hands = launcher()
    await hands.apply(orders("a", **{name: "x"}))
    told = (await hands.reports())["a"]
    assert told.state is LaunchState.REFUSED
    assert repr(name) in told.error


async def test_a_real_engine_without_gpus_refuses_their_reservation(real: str) -> None:
    hands = DockerLauncher(settings(real, gpus="0"), environment={}, now_s=Clock())
    await hands.apply(orders("a"))
    assert "device driver" in await hands.unplaceable("p", 0)
    await until(lambda: only(hands, orders(), set()))
    await hands.close()


async def test_gpus_are_reserved_in_turn(stub: StubEngine, tmp_path: Path) -> None:
    hands = DockerLauncher(settings(f"unix://{tmp_path / 'stub.sock'}", gpus="0,GPU-ab"), environment={}, now_s=Clock())
    await hands.apply(orders("a", "b", "c"))
    await hands.apply(orders("b", "c"))
    await hands.apply(orders("b", "c", "d"))
    asked = {c["Config"]["Labels"]["penstock.launch"]: c["HostConfig"]["DeviceRequests"] for c in stub.containers.values()}
    form = {"Driver": "nvidia", "Capabilities": [["gpu"]]}
    assert asked["b"] == [form | {"DeviceIDs": ["GPU-ab"]}]
    assert asked["c"] == [form | {"DeviceIDs": ["0"]}]
    assert asked["d"][0]["DeviceIDs"] in (["0"], ["GPU-ab"])
    await hands.close()
    every = DockerLauncher(settings(f"unix://{tmp_path / 'stub.sock'}", gpus="all"), environment={}, now_s=Clock())
    await every.apply(orders("b", "c", "d", "e"))
    made = next(c for c in stub.containers.values() if c["Config"]["Labels"]["penstock.launch"] == "e")
    assert made["HostConfig"]["DeviceRequests"] == [form | {"Count": -1}]
    await every.close()


@pytest.mark.parametrize(
    ("most", "least", "used"), [("1.41", "1.12", "1.41"), ("1.51", "1.44", "1.44"), ("1.40", "1.12", "1.40")]
)
async def test_a_version_both_know_is_spoken(stub: StubEngine, tmp_path: Path, most: str, least: str, used: str) -> None:
    stub.version, stub.least = most, least
    api = DockerApi(f"unix://{tmp_path / 'stub.sock'}")
    await api.containers({})
    assert stub.calls[-1] == f"GET /v{used}/containers/json"
    await api.close()


async def test_an_engine_too_old_or_away_is_named(stub: StubEngine, tmp_path: Path) -> None:
    stub.version = "1.39"
    for address, said in ((f"unix://{tmp_path / 'stub.sock'}", "API 1.39"), ("unix:///nowhere.sock", "does not answer")):
        api = DockerApi(address)
        with pytest.raises(PenstockError, match=said) as error:
            await api.containers({})
        assert address in error.value.message
        await api.close()
    with pytest.raises(PenstockError, match="no address of a Docker engine"):
        DockerApi("ssh://host")


def test_log_pieces_lose_their_headers_and_a_cut_one_keeps_its_begin() -> None:
    def piece(stream: int, text: bytes) -> bytes:
        return bytes([stream, 0, 0, 0]) + len(text).to_bytes(4, "big") + text

    raw = piece(1, b"one\n") + piece(2, b"") + piece(2, b"two\n")
    assert frames(raw) == b"one\ntwo\n"
    assert frames(raw[:-2]) == b"one\ntw"
    assert frames(raw[:5]) == b""
