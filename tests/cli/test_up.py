"""`penstock up` as a real process: what it says, what it keeps, what it starts again, and that nothing outlives it."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.household import PENSTOCK, Up, up

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

LONG = '{"prompt": "a long story", "max_tokens": 20000, "ignore_eos": true}'
"""Surely still running when the next command looks at it."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One household for all that only asks; slow enough for a request to be caught while it runs."""
    with up(tmp_path_factory.mktemp("home"), "--ephemeral", PENSTOCK_WORKER__SIM_SPEED="8") as household:
        yield household


def running_request(household: Up, process: subprocess.Popen[str]) -> str:
    """The id of the one request that runs for this client."""
    found: list[str] = []

    def look() -> bool:
        assert process.poll() is None, process.communicate()
        found[:] = [r["id"] for r in household.json("requests", "--status", "running")["data"]]
        return bool(found)

    household.until(look, "a running request")
    return found[0]


def test_it_says_what_runs_where_and_what_to_try(shared: Up) -> None:
    for part in ("server ", "keeps nothing", "gateway ", shared.url, "worker-1 ", "engine sim", "logs ", "is ready: demo"):
        assert part in shared.output
    assert f"curl -N {shared.url}/v1/chat/completions" in shared.output
    assert f'chat "Tell me of the sea" --server {shared.url}' in shared.output


def test_both_commands_to_try_work_as_printed(shared: Up) -> None:
    text = shared.output.replace("\\\n", "")
    curl = next(line for line in text.splitlines() if "curl -N" in line)
    chat = next(line for line in text.splitlines() if " chat " in line)
    done = subprocess.run(chat, shell=True, capture_output=True, text=True, env=shared.environment, cwd=shared.home, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) > 3
    if subprocess.run(["which", "curl"], capture_output=True).returncode == 0:
        done = subprocess.run(curl, shell=True, capture_output=True, text=True, env=shared.environment, timeout=60)
        assert '"delta"' in done.stdout
        assert done.stdout.rstrip().endswith("data: [DONE]")


def test_chat_streams(shared: Up) -> None:
    process = shared.start_verb("chat", "Tell me of the sea", "--max-tokens", "400")
    assert process.stdout
    first = process.stdout.read(1)
    assert first
    assert process.poll() is None, "the first piece came with the last"
    rest, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert len((first + rest).split()) > 10


def test_a_conversation_by_stdin(shared: Up) -> None:
    process = subprocess.run(
        [PENSTOCK, "chat", "--max-tokens", "8", "--server", shared.url],
        input="one\ntwo\n\nnever read\n",
        capture_output=True,
        text=True,
        env=shared.environment,
        cwd=shared.home,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    assert len(process.stdout.splitlines()) == 2


def test_submit_and_look_again(shared: Up) -> None:
    answer = shared.json("submit", "hello", "--max-tokens", "12")
    assert (answer["status"], answer["usage"]["completion_tokens"]) == ("completed", 12)
    assert shared.verb("request", "stream", answer["id"]).stdout == answer["text"] + "\n"
    assert shared.json("request", "show", answer["id"])["status"] == "completed"
    assert answer["id"] in [r["id"] for r in shared.json("requests")["data"]]
    assert answer["id"] in shared.verb("requests").stdout


def test_streaming_json_lines_resume_after_an_event(shared: Up) -> None:
    import json

    request = shared.json("submit", "hello", "--max-tokens", "12")["id"]
    lines = [json.loads(line) for line in shared.verb("request", "stream", request, "-o", "jsonl").stdout.splitlines()]
    assert [line["event"] for line in lines[-1:]] == ["end"]
    middle = lines[len(lines) // 2]["id"]
    rest = [
        json.loads(line)
        for line in shared.verb("request", "stream", request, "-o", "jsonl", "--after", middle).stdout.splitlines()
    ]
    assert rest == lines[len(lines) // 2 + 1 :]


def test_idempotency_key_makes_it_the_same_request(shared: Up) -> None:
    ids = {shared.json("submit", "hello", "--max-tokens", "4", "--detach", "--idempotency-key", "k1")["id"] for _ in range(2)}
    assert len(ids) == 1


def test_workers_and_queues(shared: Up) -> None:
    (worker,) = shared.json("ps")["data"]
    assert (worker["model"], worker["engine"], worker["state"]) == ("demo", "sim", "ready")
    assert worker["pid"] in shared.living()
    assert worker["id"] in shared.verb("ps").stdout
    assert [queue["model"] for queue in shared.json("queues")["data"]] == ["demo"]


def test_a_paused_queue_waits_and_can_be_purged(shared: Up) -> None:
    assert shared.json("queues", "pause", "demo")["paused"] is True
    try:
        waiting = shared.verb("submit", "hello", "--timeout", "300ms")
        assert waiting.returncode == 4
        assert "did not end in time" in waiting.stderr
        assert shared.json("queues")["data"][0]["backlog"] == 1
        assert shared.json("queues", "purge", "demo", "--yes")["removed"] == 1
    finally:
        assert shared.json("queues", "resume", "demo")["paused"] is False


def test_a_chat_that_takes_too_long_is_given_up_and_cancelled(shared: Up) -> None:
    done = shared.verb("chat", "a long story", "--max-tokens", "20000", "--timeout", "500ms")
    assert done.returncode == 4
    assert "did not end in time" in done.stderr
    assert shared.json("requests", "--limit", "1")["data"][0]["status"] == "cancelled"


@pytest.mark.parametrize("verb", ["chat", "submit"])
def test_ctrl_c_cancels_what_it_waits_for(verb: str, shared: Up) -> None:
    asked = ("--input", LONG) if verb == "submit" else ("a long story", "--max-tokens", "20000")
    process = shared.start_verb(verb, *asked)
    request = running_request(shared, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert shared.json("request", "show", request)["status"] == "cancelled"


def test_cancel_by_hand_ends_a_waiting_client(shared: Up) -> None:
    process = shared.start_verb("submit", "--input", LONG)
    request = running_request(shared, process)
    assert shared.json("request", "cancel", request)["status"] == "cancelled"
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert f"The request {request} was cancelled" in err


def test_retry_is_a_new_request(shared: Up) -> None:
    request = shared.json("submit", "--input", LONG, "--detach")["id"]
    assert shared.json("request", "cancel", request)["status"] == "cancelled"
    again = shared.json("request", "retry", request)
    assert again["retry_of"] == request
    assert again["id"] != request
    shared.json("request", "cancel", again["id"])


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["request", "show", "s0.nothing"], 1, ["No such request", "penstock requests"]),
        (["submit", "x", "--model", "nope"], 1, ["No such model", "Models here: demo"]),
        (["submit", "--input", '{"messages":[{"role":"user","content":"x"}],"temperature":"hot"}'], 2, ["temperature"]),
    ],
)
def test_what_the_gateway_refuses_is_told_in_three_parts(shared: Up, arguments: list[str], code: int, parts: list[str]) -> None:
    done = shared.verb(*arguments)
    assert done.returncode == code
    assert done.stderr.startswith("penstock: ")
    assert [part for part in parts[:1] if part not in done.stderr] == []
    assert "\n  do:  " in done.stderr


def test_ctrl_c_stops_everything_in_order(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral", "--workers", "2") as household:
        household.until_said("is ready", times=2)
        assert len(household.living()) == 5  # up, server, gateway, two workers
        request = household.json("submit", "hello", "--max-tokens", "150", "--detach")["id"]
        watching = household.start_verb("request", "stream", request)
        assert watching.stdout
        assert watching.stdout.read(1)
        assert household.end(signal.SIGINT) == 0
        out, err = watching.communicate(timeout=20)
        assert (watching.returncode, err) == (0, ""), "what a worker held was not let finish"
        assert out
        household.until_nothing_lives(timeout_s=2)
        assert "stopping" in household.output
    assert list(tmp_path.glob("penstock-up-*")) == []


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral") as household:
        household.json("submit", "--input", LONG, "--detach")
        household.until(lambda: household.json("ps")["data"][0]["running"] == 1, "a busy worker")
        household.process.send_signal(signal.SIGINT)
        household.until_said("stopping")
        assert household.end(signal.SIGINT, timeout_s=8) == 0
        household.until_nothing_lives(timeout_s=2)


def test_nothing_outlives_a_killed_up_and_the_next_one_keeps_the_data(tmp_path: Path) -> None:
    with up(tmp_path, "--data", "data") as household:
        answer = household.json("submit", "hello", "--max-tokens", "12")
        household.json("submit", "--input", LONG, "--detach")
        household.end(signal.SIGKILL)
        household.until_nothing_lives(timeout_s=5)
    with up(tmp_path, "--data", "data", PENSTOCK_WORKER__DRAIN_TIMEOUT_S="0.5") as household:
        assert household.verb("request", "stream", answer["id"]).stdout == answer["text"] + "\n"
        assert household.end(signal.SIGINT) == 0
    with up(tmp_path, "--data", "data") as household:
        assert household.json("request", "show", answer["id"])["status"] == "completed"


def test_ephemeral_keeps_nothing(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral", "--data", "data") as household:
        household.json("submit", "hello", "--max-tokens", "4")
        household.end(signal.SIGINT)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("part", ["worker", "gateway", "redis.conf"])
def test_what_dies_is_started_again(part: str, tmp_path: Path) -> None:
    with up(tmp_path, "--data", "data") as household:
        name = {"redis.conf": "server"}.get(part, part)
        # A Redis renames itself after its start.
        pid = next(
            p for p, c in household.living().items() if (f"penstock {part}" in c or (name == "server" and "server 127" in c))
        )
        os.kill(pid, signal.SIGKILL)
        household.until_said("was killed by signal 9")
        assert "starting it again in 0.5 s" in household.output

        def serves() -> bool:
            done = household.verb("submit", "hello", "--max-tokens", "4", "--timeout", "5s")
            return done.returncode == 0

        household.until(serves, "it to serve again", timeout_s=30)
        assert household.end(signal.SIGINT) == 0


def test_two_on_one_folder(tmp_path: Path) -> None:
    with up(tmp_path, "--data", "data", "--workers", "0", ready=False) as first:
        first.until_said("Ctrl-C stops everything")
        with up(tmp_path, "--data", "data", ready=False) as second:
            assert second.process.wait(20) == 1
            second._reader.join(5)
            assert f"another `penstock up` (process {first.process.pid}) runs on it" in second.output
            assert "--data DIR" in second.output


def test_a_wished_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with up(tmp_path, "--ephemeral", "--port", port, ready=False) as household:
            assert household.process.wait(20) == 1
            household._reader.join(5)
            assert f"Cannot listen on 127.0.0.1:{port}" in household.output
            assert "--port N" in household.output


def test_a_worker_beyond_help_ends_up_with_its_own_words(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral", "--engine", "upstream", ready=False) as household:
        assert household.process.wait(40) == 1
        household._reader.join(5)
        household.until_nothing_lives(timeout_s=2)
        assert "starting it again does not help" in household.output
        assert "upstream_url" in household.output
        assert "worker-1.log" in household.output


def test_an_engine_that_cannot_start_is_told_at_once(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral", ready=False, PENSTOCK_WORKER__SIM_GPU="no such gpu") as household:
        assert household.process.wait(40) == 1
        household._reader.join(5)
        assert "starting it again in" not in household.output
        assert "no such gpu" in household.output
        log = household.output.rpartition("Its log: ")[2].strip().rstrip(".").replace("~", str(tmp_path))
        assert Path(log).is_file()


def test_with_api_keys_the_verbs_need_one(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral", "--workers", "0", ready=False, PENSTOCK_API_KEYS="hunter22") as household:
        household.until_said("Ctrl-C stops everything")
        assert "hunter22" not in household.output
        refused = household.verb("ps")
        assert (refused.returncode, "--api-key" in refused.stderr) == (2, True)
        assert household.verb("ps", "--api-key", "hunter22").returncode == 0
        assert "hunter22" not in household.logs()
