"""Health, metrics, and the process: ports, signals, exit codes."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import httpx2
import pytest

from dispatch.errors import PenstockError
from dispatch.settings import GatewaySettings, RedisSettings, Settings
from gateway.serve import serve
from tests.gateway.helpers import MODEL, FakeWorker, Running, Tap, serving, settings_for, until

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


async def test_ready_without_a_single_worker(gateway: Running) -> None:
    for path in ("/livez", "/readyz", "/healthz", "/health"):
        answer = await gateway.client.get(path)
        assert answer.status_code == 200 and answer.text == "ok\n" and answer.headers["cache-control"] == "no-store"
    verbose = (await gateway.client.get("/readyz?verbose")).text
    assert verbose.startswith("[+] redis ok") and "[+] takes requests" in verbose
    assert (await gateway.client.get("/version")).json()["name"] == "penstock"


async def test_request_ids_are_echoed_or_minted(gateway: Running) -> None:
    echoed = await gateway.client.get("/livez", headers={"X-Request-Id": "abc-1"})
    assert echoed.headers["x-request-id"] == "abc-1"
    minted = {
        (await gateway.client.get("/nowhere", headers=h)).headers["x-request-id"] for h in ({}, {"X-Request-Id": "a b" * 99})
    }
    assert len(minted) == 2 and all(i.startswith("req_") for i in minted)


async def test_metrics_tell_what_the_queue_knows(gateway: Running, worker: FakeWorker) -> None:
    await gateway.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    await gateway.client.post(f"/v1/queues/{MODEL}/pause")
    await gateway.client.post("/v1/requests", json={**CHAT, "priority": "low"})
    await gateway.client.post("/v1/requests", content=b"x" * 3_000_000, headers={"Content-Type": "application/json"})
    text = (await gateway.client.get("/metrics")).text
    for line in (
        'penstock_queue_depth{priority="low",queue="demo"} 1.0',
        'penstock_requests_total{outcome="completed",queue="demo"} 1.0',
        'penstock_requests_accepted_total{queue="demo"} 2.0',
        'penstock_generation_tokens_total{queue="demo"} 3.0',
        'penstock_workers{state="ready"} 1.0',
        'penstock_requests_rejected_total{reason="too_large"} 1.0',
        'penstock_time_to_first_token_seconds_count{model="demo"} 1.0',
        'penstock_request_duration_seconds_count{model="demo"} 1.0',
        "penstock_streams_open 0.0",
        "penstock_redis_up 1.0",
    ):
        assert line in text, line
    assert "penstock_queue_oldest_age_seconds" in text and "penstock_worker_heartbeat_age_seconds" in text


async def test_no_prompt_answer_or_key_is_logged(
    redis: object, server_url: str, worker: FakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="penstock")
    worker.plan = lambda request: ["secret-answer"]
    async with serving(settings_for(server_url, keys=("secret-key",)), {"Authorization": "Bearer secret-key"}) as gateway:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "secret-prompt"}]}
        for route, change in (
            ("/v1/chat/completions", {}),
            ("/v1/chat/completions", {"stream": True}),
            ("/v1/requests", {"top_p": 9}),
        ):
            await gateway.client.post(route, json={**body, **change})
        await gateway.client.get("/readyz")
    lines = "\n".join(str(record.__dict__) for record in caplog.records if record.name.startswith("penstock"))
    assert "secret" not in lines
    answered = [record.route for record in caplog.records if record.getMessage() == "Answered"]  # type: ignore[attr-defined]
    assert answered == ["/v1/chat/completions", "/v1/chat/completions", "/v1/requests"]


def test_a_taken_port_and_a_missing_redis_are_told(server_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PenstockError) as refused:
            serve(Settings(redis=RedisSettings(url=server_url), gateway=GatewaySettings(port=taken.getsockname()[1])))
    assert refused.value.param == "gateway.port" and "in use" in refused.value.message
    with pytest.raises(PenstockError) as lost:
        serve(Settings(gateway=GatewaySettings(port=0)))
    assert lost.value.param == "redis.url"


async def test_the_process_starts_without_redis_and_ends_on_sigterm(redis: object, server_url: str) -> None:
    """Also: it is a child that can be killed while a stream is open, and another gateway resumes it (see test_streams)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = textwrap.dedent(
        f"""
        import sys
        from dispatch.settings import GatewaySettings, RedisSettings, Settings
        from gateway.serve import serve
        sys.exit(serve(Settings(redis=RedisSettings(url="redis://127.0.0.1:1/0"), gateway=GatewaySettings(port={port}))))
        """
    )
    process = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", program], stderr=subprocess.PIPE)
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=url) as client:

            async def alive() -> bool:
                try:
                    return (await client.get("/livez")).status_code == 200
                except httpx2.TransportError:
                    assert process.poll() is None, process.stderr.read() if process.stderr else ""
                    return False

            await until(alive, 15)
            assert (await client.get("/readyz")).status_code == 503
            refused = await client.post("/v1/requests", json=CHAT)
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "redis_unavailable"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def test_a_sigterm_while_it_is_still_starting_counts(server_url: str) -> None:
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        import gateway.serve
        from dispatch.settings import GatewaySettings, RedisSettings, Settings

        def told_at_once(server, sockets, run=gateway.serve.GatewayServer.run):
            os.kill(os.getpid(), signal.SIGTERM)  # after serve() set its handlers, before uvicorn sets its own
            run(server, sockets)

        gateway.serve.GatewayServer.run = told_at_once
        settings = Settings(redis=RedisSettings(url={server_url!r}), gateway=GatewaySettings(port=0))
        sys.exit(gateway.serve.serve(settings))
        """
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=15).returncode == 0


async def answers(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/livez")).status_code == 200
    except httpx2.TransportError:
        return False


async def test_a_killed_gateways_stream_is_resumed_elsewhere(
    redis: object, server_url: str, gateway: Running, worker: FakeWorker
) -> None:
    worker.plan = lambda request: [f"w{n} " for n in range(30)]
    tap = Tap(worker)
    await tap.to(10)
    program = textwrap.dedent(
        f"""
        import sys
        from dispatch.settings import GatewaySettings, RedisSettings, Settings
        from gateway.serve import GatewayServer, bind
        from gateway.app import build
        settings = Settings(redis=RedisSettings(url={server_url!r}), gateway=GatewaySettings(port=0))
        bound = bind(settings)
        print(bound.getsockname()[1], flush=True)
        GatewayServer(build(settings), settings).run(sockets=[bound])
        """
    )
    process = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        request, seen = "", []
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await until(lambda: answers(client), 20)  # the port is known before anybody listens there
            with pytest.raises(httpx2.TransportError):
                async with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
                    request = response.headers["x-penstock-request"]
                    async for line in response.aiter_lines():
                        if line.startswith("id: "):
                            seen.append(line.removeprefix("id: "))
                        if len(seen) == 10:
                            process.kill()
        await tap.to(30)
        rest = (await gateway.client.get(f"/v1/requests/{request}/events?after={seen[-1]}")).text
        texts = [json.loads(line[6:])["text"] for line in rest.split("\n") if line.startswith('data: {"text"')]
        assert texts == [f"w{n} " for n in range(10, 30)]
        assert "event: end" in rest
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
