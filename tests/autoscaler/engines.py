"""Servers that the container launchers talk to in tests: stubs on a socket, and a private Docker engine where one can run."""

import asyncio
import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI

from tests.ports import free_port

# What a container of each image does.
ENTRYPOINTS = {
    "obedient": "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done",
    "stubborn": "trap '' TERM; echo up; while :; do sleep 0.05; done",
    "failing": "echo up; echo no model there >&2; exit 3",
    "usage": "echo up; echo no model there >&2; exit 2",
}
_PROGRAMS = ("/bin/sh", "/bin/sleep")


@contextlib.asynccontextmanager
async def serving(app: FastAPI, listens: Path) -> AsyncIterator[None]:
    """The app on a unix socket."""
    server = uvicorn.Server(uvicorn.Config(app, uds=str(listens), log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done(), "the stub did not start"
        await asyncio.sleep(0.01)
    yield
    server.should_exit = True
    await task


@contextlib.asynccontextmanager
async def serving_http(app: FastAPI) -> AsyncIterator[str]:
    """The app on a port of this machine: its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done(), "the stub did not start"
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await task


@contextlib.contextmanager
def docker_engine(folder: Path) -> Iterator[str]:
    """A private engine with the images of ENTRYPOINTS: its address. Skips where none can run."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("no Docker engine can be started here: that takes root and dockerd")
    listens = folder / "docker.sock"
    command = ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"]
    command += ["-H", f"unix://{listens}", "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    command += ["--pidfile", str(folder / "pid")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        if not _answers(listens, process):
            pytest.skip(f"dockerd does not start here: {(folder / 'log').read_text(errors='replace')[-300:]}")
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(listens)), base_url="http://docker", timeout=20) as client:
            for name, entrypoint in ENTRYPOINTS.items():
                quoted = entrypoint.replace('"', '\\"')
                params = {
                    "fromSrc": "-",
                    "repo": "penstock-test",
                    "tag": name,
                    "changes": f'ENTRYPOINT ["/bin/sh","-c","{quoted}"]',
                }
                client.post("/images/create", params=params, content=_filesystem()).raise_for_status()
            yield f"unix://{listens}"
            for container in client.get("/containers/json", params={"all": "true"}).json():
                client.delete(f"/containers/{container['Id']}", params={"force": "true"}).raise_for_status()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(address: Path, process: "subprocess.Popen[bytes]") -> bool:
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(address))
            return True
        time.sleep(0.1)
    return False


def _filesystem() -> bytes:
    """A shell, `sleep`, and the libraries they need: all that the images need."""
    files = set(_PROGRAMS)
    for program in _PROGRAMS:
        words = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.split()
        files |= {word for word in words if word.startswith("/")}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as tar:
        for file in sorted(files):
            tar.add(file, file.lstrip("/"))
    return buffer.getvalue()
