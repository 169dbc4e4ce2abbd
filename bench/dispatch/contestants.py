"""Who is measured: processes on a stand of their own, and a client that is told of rounds. Never here: figures, reports."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.stand import ROOT, Client, Stand
from tests.ports import free_port

PEERS = ROOT / "bench" / "peers"
_PROMPT = "w" * 400


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment: arq wants an older client than the others."""
    return PEERS / (".venv-arq" if peer == "arq" else ".venv") / "bin" / "python"


def install_peers() -> None:
    """Make the peers' environments where they are not."""
    for name, wants in ((".venv", "requirements.txt"), (".venv-arq", "requirements-arq.txt")):
        if not (PEERS / name / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(PEERS / name)], check=True)
            pip = [str(PEERS / name / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "-r"]
            subprocess.run([*pip, str(PEERS / wants)], check=True)


def _http(s: Stand, port: str, path: str, body: dict[str, object], *headers: str) -> Client:
    url = f"http://127.0.0.1:{port}{path}"
    return s.client(sys.executable, "-m", "bench.dispatch.calling", url, json.dumps(body), *headers)


def floor(s: Stand, *how: str) -> Client:
    s.role(sys.executable, "-m", "bench.dispatch.floor", "worker", s.redis_url, *how)
    return s.client(sys.executable, "-m", "bench.dispatch.floor", "client", s.redis_url, *how)


def direct(s: Stand) -> Client:
    s.role(sys.executable, "-m", "bench.dispatch.direct", "worker", s.redis_url)
    return s.client(sys.executable, "-m", "bench.dispatch.direct", "client", s.redis_url)


def peer(s: Stand, name: str) -> Client:
    run = [str(python_of(name)), str(PEERS / "run.py"), name]
    s.role(*run, "worker", PEER_REDIS=s.redis_url)
    return s.client(*run, "client", PEER_REDIS=s.redis_url)


_BODY: dict[str, object] = {"model": "demo", "prompt": _PROMPT, "max_tokens": 1}


def bare(s: Stand) -> Client:
    port = str(free_port())
    s.role(sys.executable, "-m", "bench.dispatch.bare", port)
    s.until_answers(f"http://127.0.0.1:{port}/run")
    return _http(s, port, "/run", _BODY)


def peer_http(s: Stand, name: str) -> Client:
    run, port = [str(python_of(name)), str(PEERS / "run.py"), name], str(free_port())
    s.role(*run, "worker", PEER_REDIS=s.redis_url)
    s.role(*run, "app", port, PEER_REDIS=s.redis_url)
    s.until_answers(f"http://127.0.0.1:{port}/run")
    return _http(s, port, "/run", _BODY)


def _house(s: Stand, gateways: int) -> str:
    """Gateways and an instant worker. Returns the ports."""
    ports: Sequence[str] = [str(free_port()) for _ in range(gateways)]
    for port in ports:
        s.penstock("gateway", "--port", port)
    s.penstock("worker", "--engine", "sim", "--model", "demo", PENSTOCK_WORKER__SIM_SPEED="inf", PENSTOCK_WORKER__SLOTS="1024")
    for port in ports:
        s.until_answers(f"http://127.0.0.1:{port}/v1/models/demo")
    s.until_ready(ports[0])
    return ",".join(ports)


def http_wait(s: Stand, gateways: int) -> Client:
    return _http(s, _house(s, gateways), "/v1/requests", _BODY, "Prefer: wait=30")


def http_chat(s: Stand, gateways: int) -> Client:
    body = {"model": "demo", "messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 1}
    return _http(s, _house(s, gateways), "/v1/chat/completions", body)
