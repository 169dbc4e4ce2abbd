"""`penstock request why` against real processes: a worker that is busy, one that is too small, one that is gone."""

import json
import subprocess
import sys
import time
import urllib.request
from typing import Any

from tests.system.house import House, Role, house, until


def submit(gateway: Role, max_tokens: int) -> str:
    body = {"model": "demo", "prompt": "Tell me of the river", "max_tokens": max_tokens, "ignore_eos": True}
    return str(post(gateway, "/v1/requests", body)["id"])


def post(gateway: Role, path: str, body: Any = None) -> Any:
    asked = urllib.request.Request(gateway.url + path, json.dumps(body or {}).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=10) as reply:
        return json.load(reply)


def why(gateway: Role, request: str, *flags: str) -> str:
    command = [sys.executable, "-m", "penstock", "request", "why", request, "--server", gateway.url, *flags]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def explained(gateway: Role, request: str) -> Any:
    return json.loads(why(gateway, request, "-o", "json"))


def state(home: House, gateway: Role, request: str) -> str:
    return str(home.get(gateway, f"/v1/requests/{request}")["status"])


def test_a_busy_a_small_and_a_gone_worker_are_told() -> None:
    with house() as home:
        gateway = home.gateway()
        home.worker("--engine", "sim", "--speed", "2", PENSTOCK_WORKER__KV_TOKENS="512")
        home.until_ready(gateway, 1)
        first = submit(gateway, 400)
        until(lambda: state(home, gateway, first) == "running", "the first to run")
        running = why(gateway, first)
        assert "was chosen by pull: score " in running and "the only one with room" in running

        second = submit(gateway, 400)
        until(lambda: home.get(gateway, "/v1/workers")["data"][0]["tokens_per_s"] > 0, "a measured speed")
        told = explained(gateway, second)
        (worker,) = told["workers"]
        assert worker["code"] == "no_room" and worker["limit_tokens"] == 512 and told["impossible"] is None
        assert told["needs"]["cost_tokens"] > worker["free_tokens"] and told["position"] == 1
        expected_s, asked_at = told["expected_start"]["seconds"], time.monotonic()
        table = why(gateway, second)
        assert "no_room" in table and "tokens are free, it needs" in table and "start     in about" in table
        until(lambda: state(home, gateway, second) == "running", "the second to run")
        took_s = time.monotonic() - asked_at
        print(f"expected start in {expected_s} s, it took {took_s:.1f} s")
        assert 0 < expected_s < 60
        assert "took it from the line" in why(gateway, second)
        assert explained(gateway, first)["ended"]["state"] == "completed"

        large = home.worker("--engine", "sim", "--speed", "2", PENSTOCK_WORKER__KV_TOKENS="4096")
        home.until_ready(gateway, 2)
        post(gateway, "/v1/queues/demo/pause")
        big = submit(gateway, 2_000)
        assert explained(gateway, big)["paused"]
        large.kill()
        until(lambda: explained(gateway, big)["impossible"] is not None, "the loss of the large one to be noticed", 30)
        told = explained(gateway, big)
        assert told["impossible"]["code"] == "too_large" and "holds 512" in told["impossible"]["words"]
        table = why(gateway, big)
        assert "it cannot start" in table and "do        start a worker that holds at least 2,0" in table and "too_small" in table
        post(gateway, "/v1/queues/demo/resume")
        home.worker("--engine", "sim", "--speed", "inf", PENSTOCK_WORKER__KV_TOKENS="4096")
        until(lambda: state(home, gateway, big) == "completed", "what was said to help to help", 60)
