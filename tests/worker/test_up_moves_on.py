"""`up` tells of its workers' deaths at once: a client does not wait for a lease."""

import os
import signal
import time
from pathlib import Path

from tests.cli.household import up


def test_a_killed_workers_request_moves_on_and_its_client_sees_one_answer(tmp_path: Path) -> None:
    with up(tmp_path, "--workers", "2", PENSTOCK_WORKER__SIM_SPEED="0.5") as household:
        household.until_said("is ready", times=2)
        client = household.start_verb("submit", "a story", "--max-tokens", "100")

        holders: list[int] = []

        def is_held() -> bool:
            holders[:] = [worker["pid"] for worker in household.json("ps")["data"] if worker["running"]]
            return bool(holders)

        household.until(is_held, "a worker that holds it")
        killed_at = time.monotonic()
        os.kill(holders[0], signal.SIGKILL)
        household.until_said("moved on")
        assert time.monotonic() - killed_at < 3  # its lease would last for 10 s, its heartbeat for 5
        _, err = client.communicate(timeout=60)
        assert client.returncode == 0, err
        (request,) = household.json("requests")["data"]
        assert (request["status"], request["attempt"]) == ("completed", 2)
