"""docs/autoscaler.md, docs/launchers.md and their examples say what the code does."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from autoscaler.launchers.registry import build
from autoscaler.pools import pools_of
from dispatch.configuration import as_environment, load
from dispatch.keys import ShardKeys
from dispatch.metrics_scale import ScaleView
from dispatch.scaling import (
    Action,
    DecisionRecord,
    Launch,
    LauncherName,
    LaunchReport,
    LaunchState,
    Leadership,
    Orders,
    PoolStatus,
    ScalingPolicy,
)
from dispatch.settings import WorkerSettings
from dispatch.states import Priority
from tests.autoscaler.kubernetes_stub import StubCluster
from tests.autoscaler.test_kubernetes_launcher import cluster, make, orders  # noqa: F401

DOCS = Path(__file__).parents[2] / "docs"
OPERATORS = (DOCS / "autoscaler.md").read_text()
LAUNCHERS = (DOCS / "launchers.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.S)


def documents(name: str) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all((DOCS / "examples" / name).read_text()) if d]


def test_the_toml_example_is_complete_and_valid(tmp_path: Path) -> None:
    (example,) = blocks(OPERATORS, "toml")
    (tmp_path / "penstock.toml").write_text(example)
    settings = load({}, environment={}, folder=tmp_path).settings
    pools = pools_of(settings, {}, {})
    assert [(p.name, p.model, p.launcher, p.policy.max) for p in pools] == [
        ("chat", "Qwen/Qwen3-0.6B", LauncherName.AGENTS, 8),
        ("embedding-api", "served-elsewhere", LauncherName.EXEC, 2),
    ]
    assert [(floor.from_minute, floor.least) for floor in pools[0].policy.floors] == [(8 * 60, 2)]
    assert pools[1].worker["upstream_url"] == "http://10.0.0.9:8080/v1"
    assert type(build(pools[1].launcher, settings)).__name__ == "ExecLauncher"
    # A process that is started by another one gets the same pools as JSON.
    assert load({}, environment=as_environment(settings), folder=tmp_path / "none").settings.autoscaler == settings.autoscaler


def test_every_launcher_policy_action_and_field_of_a_decision_is_told() -> None:
    fields = [name for name in DecisionRecord.__dataclass_fields__ if name != "v"]
    for word in (*LauncherName, *ScalingPolicy, *Action, *fields):
        assert f"`{word}`" in OPERATORS, word
    for state in LaunchState:
        assert f"`{state}`" in LAUNCHERS, state


def test_every_metric_of_the_table_exists_and_every_one_is_in_it() -> None:
    record = DecisionRecord(0, "p", "m", Action.HOLD, 0, 0, 0.0, (0, 1), "", "")
    status = PoolStatus("p", "m", "g", "local", "as", record, {"ready": 1}, cold_start_s=1.0)
    view = ScaleView((status,), {"g": Leadership("as", 1, True)}, {("p", "hold"): 1})
    there = {sample.name for family in view.families() for sample in family.samples}
    there |= set(re.findall(r'"(penstock_autoscaler_\w+)"', (DOCS.parent / "autoscaler" / "health.py").read_text()))
    assert set(re.findall(r"`(penstock_autoscaler_\w+)`", OPERATORS)) == there


def test_the_verbs_are_those_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    from penstock.cli import main

    lines = [line.split("#")[0].split() for block in blocks(OPERATORS, "sh") for line in block.splitlines()]
    verbs = {tuple(words[1:3]) if words[1] == "scale" and len(words) > 2 else (words[1],) for words in lines if words}
    assert {("autoscaler",), ("agent",), ("scale", "explain"), ("scale", "pause"), ("top",)} <= verbs
    for verb in verbs:
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(main([*verb, "--help"]))
        assert ended.value.code == 0, verb
        capsys.readouterr()
    for words in lines:
        flags = [word for word in words if word.startswith("-")]
        if flags:
            with pytest.raises(SystemExit):
                raise SystemExit(main([*(words[1:3] if words[1] == "scale" else words[1:2]), "--help"]))
            told = capsys.readouterr().out
            assert all(flag in told for flag in flags), words


def test_the_documents_of_the_exec_contract_are_read_by_the_code() -> None:
    orders_, report = (json.loads(block) for block in blocks(LAUNCHERS, "json"))
    read = msgspec.convert(orders_, Orders)
    assert read.launches()["l-4f1c"].worker == {"model": "Qwen/Qwen3-0.6B"}
    assert set(orders_["pools"][0]["launches"][0]) == set(Launch.__dataclass_fields__)
    assert set(report) == set(LaunchReport.__dataclass_fields__)
    assert msgspec.convert(report, LaunchReport).state is LaunchState.RUNNING
    least = {name: report[name] for name in ("id", "pool", "state")}
    assert msgspec.convert(least, LaunchReport).id == "l-4f1c"


def test_the_manifests_name_settings_of_ours(tmp_path: Path) -> None:
    found = {(d["kind"], d["metadata"]["name"]): d for d in documents("kubernetes.yaml")}
    container = found["Deployment", "chat"]["spec"]["template"]["spec"]["containers"][0]
    variables = {entry["name"]: entry for entry in container["env"]}
    assert variables["PENSTOCK_WORKER__LAUNCH"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    (tmp_path / "penstock.toml").write_text(found["ConfigMap", "penstock-autoscaler"]["data"]["penstock.toml"])
    asked = load({}, environment={}, folder=tmp_path).settings.autoscaler
    assert asked.pools[variables["PENSTOCK_WORKER__POOL"]["value"]].deployment == "gpu/chat"
    assert asked.pools["chat"].model == variables["PENSTOCK_WORKER__MODEL"]["value"]
    assert "replicas" not in found["Deployment", "chat"]["spec"]
    pod = found["Deployment", "chat"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > WorkerSettings().drain_timeout_s
    assert f"127.0.0.1:{asked.port}/livez" in str(found["Deployment", "penstock-autoscaler"])


async def test_the_role_allows_every_call_and_no_more(cluster: StubCluster, make: Callable[..., Any]) -> None:  # noqa: F811
    from tests.autoscaler.test_kubernetes_launcher import Clock

    clock = Clock()
    hands = make(clock)
    await hands.apply(orders("1", "2"))
    cluster.settle()
    cluster.pods["llm-2"]["status"]["containerStatuses"][0] |= {"restartCount": 1, "ready": False}
    await hands.reports()
    await hands.apply(orders("llm-2"))
    cluster.settle()
    clock.now_s += 10
    await hands.apply(orders("llm-2"))
    used = set()
    for method, path in cluster.calls:
        kind = path.split("/gpu/")[1].split("/")
        resource = "/".join([kind[0], *kind[2:]])
        verb = {"GET": "get" if len(kind) > 1 else "list", "PATCH": "patch", "DELETE": "delete"}[method]
        used.add(("apps" if path.startswith("/apis/apps/") else "", resource, verb))
    (role,) = (d for d in documents("kubernetes.yaml") if d["kind"] == "Role")
    allowed = {(g, r, v) for rule in role["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}
    assert used == allowed


def test_keda_is_pointed_at_what_is_there() -> None:
    triggers = {
        t["type"]: t["metadata"] for d in documents("keda.yaml") if d["kind"] == "ScaledObject" for t in d["spec"]["triggers"]
    }
    by_redis, by_gateway = triggers["redis-streams"], triggers["metrics-api"]
    assert by_redis["stream"] == ShardKeys("s0").queue("Qwen/Qwen3-0.6B", Priority.NORMAL)
    assert "consumerGroup" not in by_redis and "pendingEntriesCount" not in by_redis
    assert by_gateway["url"].endswith("/v1/scale/Qwen/Qwen3-0.6B")
    assert (by_gateway["valueLocation"], by_gateway["activationTargetValue"]) == ("value", "0")
    from gateway.routes.scale import router

    assert "/v1/scale/{model:path}" in {getattr(route, "path", "") for route in router.routes}


def test_the_example_has_the_length_it_is_said_to_have() -> None:
    lines = len((DOCS / "examples" / "launch.py").read_text().splitlines())
    told = int(re.search(r"complete program, (\d+) lines", LAUNCHERS)[1])  # type: ignore[index]
    assert abs(lines - told) <= 10


@pytest.mark.parametrize("page", [OPERATORS, LAUNCHERS], ids=["autoscaler.md", "launchers.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert "://" in target or (DOCS / target).exists(), target
