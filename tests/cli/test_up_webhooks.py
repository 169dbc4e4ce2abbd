"""`up` delivers webhooks when it has a secret to sign them with."""

import http.server
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.cli.household import up

SECRET = "whsec_" + "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    got: list[tuple[str, dict[str, str]]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            got.append((body, {name.lower(): value for name, value in self.headers.items()}))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_up_tells_of_an_ending(tmp_path: Path, receiver: tuple[str, list[tuple[str, dict[str, str]]]]) -> None:
    url, got = receiver
    hooks = {"PENSTOCK_WEBHOOK__SECRET": SECRET, "PENSTOCK_WEBHOOK__ALLOW_PRIVATE": "true"}
    with up(tmp_path, "--ephemeral", **hooks) as household:
        done = household.verb("submit", "tell me", "--max-tokens", "3", "--webhook", url)
        assert done.returncode == 0, done.stderr
        household.until(lambda: got, "the webhook to arrive")
        body, headers = got[0]
        event = OpenAI(api_key="none", webhook_secret=SECRET).webhooks.unwrap(body, headers)
        assert event.type == "request.completed"
        assert household.end(signal.SIGINT) == 0
        household.until_nothing_lives()
    assert SECRET not in household.output + household.logs()
