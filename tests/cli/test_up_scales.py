"""`up` scales its workers by the load: down to none, and back when somebody asks."""

import json
import signal
import time
from pathlib import Path

from tests.cli.household import Up, up

POOL = {
    "max": 3,
    "idle_timeout_s": 8,
    "down_window_s": 1,
    "target_s": 1,
    "worker": {"sim_speed": "0.5", "slots": "2"},
}


def ready(household: Up) -> int:
    return sum(1 for worker in household.json("ps")["data"] if worker["state"] == "ready")


def test_up_scales_by_load_to_none_and_back(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral", ready=False, PENSTOCK_AUTOSCALER__POOLS=json.dumps({"demo": POOL})) as household:
        household.until(lambda: "Ctrl-C stops everything" in household.output, "the gateway to be up")
        assert "0 to 3 by load" in household.output
        household.until_said("worker-1 is ready")  # nobody has asked yet: it comes to bring the model's card

        asked = [household.start_verb("submit", f"burst {n}", "--max-tokens", "60") for n in range(12)]
        household.until(lambda: ready(household) >= 2, "more than one worker")
        for process in asked:
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
        household.until(lambda: household.json("ps")["data"] == [], "no worker to be left after idleness", 40)
        household.until_said("-> 0 workers")
        ended = [r for r in household.json("requests")["data"] if r["status"] == "completed"]
        assert len(ended) == 12
        assert all(r["attempt"] == 1 and r["charged"] == 0 for r in ended), "retiring costs no attempt"

        asked_at = time.monotonic()
        again = household.verb("submit", "wake up", "--max-tokens", "3")
        assert again.returncode == 0, again.stderr
        print(f"back from zero in {time.monotonic() - asked_at:.1f} s")
        household.end(signal.SIGINT)
        household.until_nothing_lives()


def test_a_plain_number_fixes_it(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral", "--workers", "2") as household:
        household.until(lambda: ready(household) == 2, "both workers")
        pool = household.json("scale", "show")["data"][0]
        assert (pool["min"], pool["max"]) == (2, 2)


def test_a_number_of_workers_beside_pools_is_refused(tmp_path: Path) -> None:
    """It would say nothing of which pool's."""
    with up(
        tmp_path, "--ephemeral", "--workers", "2", ready=False, PENSTOCK_AUTOSCALER__POOLS='{"demo": {"max": 3}}'
    ) as household:
        household.until_said("--workers does not go with pools")
        assert household.process.wait(20) != 0
        household.until_nothing_lives()
