"""docker-compose.yml: valid by docker-compose's own reading (no engine needed), and what it promises."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatch.configuration import load_settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert isinstance(document["services"], dict)
    return document["services"]


def config(**variables: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("docker-compose")
    if tool is None:
        pytest.skip("no docker-compose here: `make test` installs the Debian package when run by root")
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    return subprocess.run(
        [tool, "-f", str(ROOT / "docker-compose.yml"), "config"], capture_output=True, text=True, env=environment, timeout=60
    )


def test_docker_compose_accepts_it() -> None:
    done = config(PENSTOCK_API_KEYS="one,two", REDIS_IMAGE="redis:8", MODEL="org/model")
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    assert read["redis"]["image"] == "redis:8"
    assert read["worker"]["environment"]["PENSTOCK_WORKER__MODEL"] == "org/model"


def test_an_api_key_is_required() -> None:
    done = config()
    assert done.returncode != 0
    assert "PENSTOCK_API_KEYS" in done.stderr


def test_redis_keeps_what_it_is_given(services: dict[str, Any]) -> None:
    redis = services["redis"]
    flags = dict(zip(redis["command"][::2], redis["command"][1::2], strict=True))
    assert (flags["--appendonly"], flags["--maxmemory-policy"]) == ("yes", "noeviction")
    assert redis["image"] == "${REDIS_IMAGE:-valkey/valkey:9}"
    assert redis["healthcheck"]["test"]
    assert redis["volumes"] == ["redis-data:/data"]
    assert "ports" not in redis


def test_two_gateways_share_one_image_and_wait_for_redis(services: dict[str, Any]) -> None:
    gateways = [services["gateway-1"], services["gateway-2"]]
    assert all(g["depends_on"]["redis"]["condition"] == "service_healthy" for g in gateways)
    assert {g["build"]["target"] for g in gateways} == {"gateway"}
    assert len({g["ports"][0] for g in gateways}) == 2


def test_the_worker_reserves_a_gpu(services: dict[str, Any]) -> None:
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


def test_every_penstock_variable_in_it_is_a_setting(services: dict[str, Any], tmp_path: Path) -> None:
    for service in services.values():
        given = {name: "x" * 8 for name in service.get("environment", {}) if name.startswith("PENSTOCK_")}
        given |= {"PENSTOCK_REDIS__URL": "redis://redis:6379/0"} if "PENSTOCK_REDIS__URL" in given else {}
        load_settings({}, environment=given, folder=tmp_path)


def test_the_worker_may_write_where_its_volume_is_mounted(services: dict[str, Any]) -> None:
    """A new volume takes the owner of the image's folder; without one it would be root's, and every download would fail."""
    stage = (ROOT / "Dockerfile").read_text().partition("\nFROM runtime AS worker\n")[2]
    before_user, _, after_user = stage.partition("USER 10001")
    for volume in services["worker"]["volumes"]:
        folder = volume.split(":")[1]
        assert f"mkdir -p {folder} && chown -R 10001:10001 " in before_user
        assert folder.startswith(before_user.partition("chown -R 10001:10001 ")[2].split()[0])
    assert "USER" not in after_user


def test_only_the_worker_image_has_torch() -> None:
    stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")
    installs = {stage.split()[2]: stage for stage in stages if "pip install" in stage}
    assert set(installs) == {"gateway-build", "worker-build"}
    assert "[transformers]" not in installs["gateway-build"]
    assert "[transformers]" in installs["worker-build"]
    targets = {stage.split()[2]: stage for stage in stages if len(stage.split()) > 2 and stage.split()[1] == "AS"}
    assert "--from=gateway-build" in targets["gateway"]
    assert "--from=worker-build" in targets["worker"]
