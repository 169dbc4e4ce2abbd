"""The unit examples in docs/systemd: valid by systemd's own reading, and what they promise."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dispatch.configuration import load_settings

FOLDER = Path(__file__).parents[1] / "docs" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))


def read(unit: Path) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    return parser["Service"]


def test_there_is_one_for_each_role() -> None:
    assert [unit.stem for unit in UNITS] == ["penstock-agent", "penstock-autoscaler", "penstock-gateway", "penstock-worker"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_it(unit: Path, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze here")
    program = Path(sys.executable).with_name("penstock")
    # Whether the program is there is of the machine, not of the unit.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/penstock/bin/penstock", str(program if program.exists() else sys.executable)))
    done = subprocess.run(
        [tool, "verify", "--man=no", "--recursive-errors=no", str(copy)], capture_output=True, text=True, timeout=60
    )
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, complaints) == (0, [])


def test_systemd_would_say_so_if_one_were_wrong(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze here")
    wrong = tmp_path / "wrong.service"
    wrong.write_text("[Service]\nExecStart=/bin/true\nKillMode=processes\n")
    done = subprocess.run(
        [tool, "verify", "--man=no", "--recursive-errors=no", str(wrong)], capture_output=True, text=True, timeout=60
    )
    assert f"{wrong}:3: Failed to parse kill mode" in done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_its_verb_and_its_settings_are_ours(unit: Path, tmp_path: Path) -> None:
    service = read(unit)
    verb = service["ExecStart"].split()[1]
    assert unit.stem == f"penstock-{verb}"
    done = subprocess.run([sys.executable, "-m", "penstock", verb, "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    lines = [
        line.removeprefix("Environment=") for line in unit.read_text().splitlines() if line.startswith("Environment=PENSTOCK_")
    ]
    load_settings({}, environment=dict(line.split("=", 1) for line in lines), folder=tmp_path)


def test_each_may_drain_before_it_is_killed(tmp_path: Path) -> None:
    settings = load_settings({}, environment={}, folder=tmp_path)
    for name, drain_s in (("gateway", settings.gateway.drain_timeout_s), ("worker", settings.worker.drain_timeout_s)):
        assert int(read(FOLDER / f"penstock-{name}.service")["TimeoutStopSec"]) > drain_s


def test_an_agents_workers_outlive_it() -> None:
    agent = read(FOLDER / "penstock-agent.service")
    assert agent["KillMode"] == "process"
    assert agent["OOMPolicy"] == "continue"
    assert "PrivateTmp" not in agent  # it would go with the agent
    assert agent["StateDirectory"] == "penstock"
    assert "Environment=PENSTOCK_AGENT__STATE_DIR=/var/lib/penstock" in (FOLDER / "penstock-agent.service").read_text()
