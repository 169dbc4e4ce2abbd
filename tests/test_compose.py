"""docker-compose.yml: valid by docker-compose's own reading (no engine needed), and what it promises."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
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
    pools = json.loads(read["autoscaler"]["environment"]["PENSTOCK_AUTOSCALER__POOLS"])
    assert pools == {"main": {"model": "org/model", "min": 0, "max": 4}}


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


def resolved(value: str) -> str:
    """The value as it is without any variable set; one that must be given is eight characters."""
    return re.sub(r"\$\{\w+:([-?])([^}]*)\}", lambda m: m[2] if m[1] == "-" else "x" * 8, value)


def test_every_penstock_variable_in_it_is_a_setting_with_a_valid_value(services: dict[str, Any], tmp_path: Path) -> None:
    loaded = {}
    for name, service in services.items():
        variables = {n: resolved(v) for n, v in service.get("environment", {}).items() if n.startswith("PENSTOCK_")}
        loaded[name] = load_settings({}, environment=variables, folder=tmp_path)
    assert {s.redis.url for n, s in loaded.items() if n != "redis"} == {"redis://redis:6379/0"}
    pool = loaded["autoscaler"].autoscaler.pools["main"]
    assert (pool.model, pool.min, pool.max) == (loaded["worker"].worker.model, 0, 4)
    assert loaded["autoscaler"].autoscaler.group == loaded["agent"].agent.group


def test_workers_come_by_an_agent_or_fixed_and_only_when_asked_for(services: dict[str, Any]) -> None:
    assert {name: service.get("profiles") for name, service in services.items() if service.get("profiles")} == {
        "agent": ["agent"],
        "worker": ["worker"],
    }
    assert "depends_on" not in services["agent"]  # on another host it stands alone
    assert services["agent"]["hostname"] == services["agent"]["environment"]["PENSTOCK_AGENT__HOST"]
    (device,) = services["agent"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", "all", ["gpu"])


def test_the_autoscaler_is_asked_for_its_own_health(services: dict[str, Any]) -> None:
    """Its image's check asks a gateway's port."""
    autoscaler = services["autoscaler"]
    assert f"127.0.0.1:{autoscaler['environment']['PENSTOCK_AUTOSCALER__PORT']}/livez" in autoscaler["healthcheck"]["test"][-1]


def test_the_agents_workers_drain_before_its_container_ends(services: dict[str, Any], tmp_path: Path) -> None:
    """The command is run as it stands, with a `penstock` that notes how it was called."""
    calls = tmp_path / "calls"
    fake = tmp_path / "penstock"
    fake.write_text(
        f"#!/bin/sh\ntrap 'echo ended >>{calls}; exit 0' TERM\n"
        f'echo "$@" >>{calls}\n[ "$2" = --stop-workers ] && exit 0\nwhile :; do sleep 0.02; done\n'
    )
    fake.chmod(0o755)
    (command,) = services["agent"]["command"]
    around = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = [*services["agent"]["entrypoint"], command.replace("$$", "$")]
    nameless = subprocess.run(run, env={**around, "PENSTOCK_AGENT__HOST": ""}, capture_output=True, text=True, timeout=10)
    assert nameless.returncode == 2, "two hosts with one name would both run every launch"
    assert "AGENT_HOST" in nameless.stderr
    process = subprocess.Popen(run, env={**around, "PENSTOCK_AGENT__HOST": "gpu-1"})
    give_up_at = time.monotonic() + 10
    while not calls.exists() or calls.read_text() != "agent\n":
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert calls.read_text().splitlines() == ["agent", "ended", "agent --stop-workers"]


def test_the_worker_may_write_where_its_volume_is_mounted(services: dict[str, Any]) -> None:
    """A new volume takes the owner of the image's folder; without one it would be root's, and every download would fail."""
    stage = (ROOT / "Dockerfile").read_text().partition("\nFROM runtime AS worker\n")[2]
    before_user, _, after_user = stage.partition("USER 10001")
    for volume in services["worker"]["volumes"] + services["agent"]["volumes"]:
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
