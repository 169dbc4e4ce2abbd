"""Streams under stress: other gateways, clients that leave or do not read, a feed that is cut, Redis that goes away."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import gateway.streaming
from dispatch.messages import Attached, AttachStatus, InferenceRequest, InputKind, NewRequest, Sampling, encode, new_id
from dispatch.queue import Queue
from dispatch.rules import QueueRules
from dispatch.states import RequestState
from gateway.reading import Over
from gateway.streaming import Feed
from tests.gateway.helpers import MODEL, Event, FakeWorker, Running, Tap, events_of, serving, settings_for, until, words_of

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
AS_JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def second(redis: object, server_url: str) -> AsyncIterator[Running]:
    async with serving(settings_for(server_url)) as found:
        yield found


async def state_of(queue: Queue, request: str) -> RequestState | None:
    record = await queue.record(request)
    return record.state if record else None


async def read_some(gateway: Running, path: str, enough: Callable[[list[Event]], bool]) -> list[Event]:
    events: list[Event] = []
    async with gateway.client.stream("GET", path) as response:
        assert response.status_code == 200, await response.aread()
        async for event in events_of(response):
            events.append(event)
            if enough(events):
                break
    return events


async def test_a_stream_goes_on_at_another_gateway_byte_for_byte(gateway: Running, second: Running, worker: FakeWorker) -> None:
    worker.plan = lambda request: words_of(40)
    tap = Tap(worker)
    request = (await gateway.client.post("/v1/requests", json=CHAT)).json()["id"]
    await tap.to(7)
    head = await read_some(gateway, f"/v1/requests/{request}/events", lambda e: len(e) == 6)

    async def tail() -> list[Event]:
        return await read_some(second, f"/v1/requests/{request}/events?after={head[-1].id}", lambda e: False)

    resumed = asyncio.create_task(tail())
    whole = asyncio.create_task(read_some(gateway, f"/v1/requests/{request}/events", lambda e: False))
    await until(lambda: second.gateway.feed.open_readers and gateway.gateway.feed.open_readers)
    for chunks in range(8, 41):
        await tap.to(chunks)
    reference = await whole
    assert [*head[1:], *(await resumed)[1:]] == reference[1:]
    assert len(reference) == 42 and reference[-1].name == "end"


async def test_two_gateways_read_one_request_at_once(gateway: Running, second: Running, worker: FakeWorker) -> None:
    worker.plan = lambda request: words_of(30)
    tap = Tap(worker)
    request = (await gateway.client.post("/v1/requests", json=CHAT)).json()["id"]
    path = f"/v1/requests/{request}/events"
    readers = [asyncio.create_task(read_some(g, path, lambda e: False)) for g in (gateway, second, gateway, second)]
    await until(lambda: gateway.gateway.feed.open_readers == 2 and second.gateway.feed.open_readers == 2)
    await tap.to(30)
    logs = [[event for event in await reader if event.name != "status"] for reader in readers]
    assert logs[0] == logs[1] == logs[2] == logs[3] and len(logs[0]) == 31
    await until(lambda: not gateway.gateway.feed.open_readers and not gateway.gateway.feed._requests)


def quick_grace(monkeypatch: pytest.MonkeyPatch, **rules: int) -> None:
    """Gateways built from now on run with shorter spans than an operator may set."""
    from dispatch.settings import QueueSettings

    monkeypatch.setattr(QueueSettings, "rules", lambda self: QueueRules(**rules))


async def test_a_client_that_leaves_cancels_after_the_grace(
    redis: object, server_url: str, queue: Queue, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_grace(monkeypatch, disconnect_grace_ms=300)
    tap = Tap(worker)
    async with serving(settings_for(server_url)) as gateway:
        # The server stops reading in the middle of so much.
        for stream, padding in ((True, 0), (False, 0), (False, 200_000)):
            body = json.dumps({**CHAT, "stream": stream}).encode() + b" " * padding
            worker.seen.clear()
            await tap.to(1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    async with gateway.client.stream("POST", "/v1/chat/completions", content=body, headers=AS_JSON) as response:
                        async for _ in response.aiter_lines():
                            pass
            request = worker.seen[0].id
            await until(lambda: not gateway.gateway.feed.open_readers)

            async def cancelled(request: str = request) -> bool:
                return await state_of(queue, request) is RequestState.CANCELLED

            await until(cancelled, 3)
            await until(lambda request=request: request in worker.stopped)
        assert 'penstock_client_disconnects_total{phase="running"} 3.0' in (await gateway.client.get("/metrics")).text


async def test_a_client_that_asked_so_may_leave(
    redis: object, server_url: str, queue: Queue, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_grace(monkeypatch, disconnect_grace_ms=100)
    tap = Tap(worker)
    headers = {"X-Penstock-On-Disconnect": "continue"}
    async with serving(settings_for(server_url)) as gateway:
        body = {**CHAT, "stream": True}
        async with gateway.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            request = response.headers["x-penstock-request"]
        await until(lambda: not gateway.gateway.feed.open_readers)
        await asyncio.sleep(0.6)  # longer than grace and sweep: only time can show that nothing happens
        assert await state_of(queue, request) is RequestState.RUNNING
        await tap.to(3)
        done = await gateway.client.get(f"/v1/requests/{request}?wait=5")
        assert done.json()["status"] == "completed"


async def test_coming_back_within_the_grace_keeps_it_alive(
    redis: object, server_url: str, queue: Queue, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_grace(monkeypatch, disconnect_grace_ms=1000)
    tap = Tap(worker)
    async with serving(settings_for(server_url)) as gateway, serving(settings_for(server_url)) as second:
        async with gateway.client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
            request = response.headers["x-penstock-request"]
        await until(lambda: not gateway.gateway.feed.open_readers)
        back = asyncio.create_task(read_some(second, f"/v1/requests/{request}/events", lambda e: False))
        await asyncio.sleep(1.5)
        assert await state_of(queue, request) is RequestState.RUNNING
        await tap.to(3)
        assert [e.name for e in await back] == ["status", "chunk", "chunk", "chunk", "end"]


async def test_a_client_that_does_not_read_is_cut_and_may_resume(redis: object, server_url: str, worker: FakeWorker) -> None:
    worker.plan = lambda request: ["x" * 50_000] * 400  # 20 MB: more than any socket buffer takes
    settings = settings_for(server_url, reader_buffer_bytes=65_536, write_timeout_s=10)
    async with serving(settings) as gateway:
        body = json.dumps({**CHAT, "stream": True}).encode()
        address = urlsplit(gateway.url)
        loop = asyncio.get_running_loop()
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.setblocking(False)
            await loop.sock_connect(lazy, (address.hostname, address.port))
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            extra = b"X-Penstock-On-Disconnect: continue\r\nContent-Length: %d\r\n\r\n" % len(body)
            await loop.sock_sendall(lazy, head + extra + body)
            await until(lambda: gateway.gateway.metrics.readers_cut._value.get() == 1, 9)
            assert not gateway.gateway.feed.open_readers
        request = worker.seen[0].id
        rest = await gateway.client.get(f"/v1/requests/{request}/result?wait=10")
        assert len(rest.json()["text"]) == 20_000_000


async def test_a_write_that_takes_too_long_ends_the_stream(redis: object, server_url: str, worker: FakeWorker) -> None:
    worker.plan = lambda request: ["x" * 50_000] * 200
    settings = settings_for(server_url, write_timeout_s=0.3)
    async with serving(settings) as gateway:
        request = (await gateway.client.post("/v1/requests", json=CHAT, headers={"Prefer": "wait=20"})).json()["id"]
        address = urlsplit(gateway.url)
        loop = asyncio.get_running_loop()
        with socket.socket() as lazy:  # the whole log is there at once: no feed, no buffer to overflow
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.setblocking(False)
            await loop.sock_connect(lazy, (address.hostname, address.port))
            await loop.sock_sendall(lazy, f"GET /v1/requests/{request}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await until(lambda: gateway.gateway.metrics.readers_cut._value.get() == 1)
            assert not gateway.gateway.feed.open_readers


async def test_a_cut_feed_loses_nothing(
    redis: object, server_url: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_grace(monkeypatch, feed_cap=5)
    worker.queue = Queue(worker.queue._redis, QueueRules(feed_cap=5))
    worker.plan = lambda request: [f"{request.messages[0]['content']}:{n} " for n in range(150)]
    cuts = 0
    doubt_all = Feed.doubt_all

    def counted(self: Feed) -> None:
        nonlocal cuts
        cuts += 1
        doubt_all(self)

    monkeypatch.setattr(Feed, "doubt_all", counted)
    monkeypatch.setattr(gateway.streaming, "_TRIM_EVERY_S", 1000.0)  # what is read stays, so that the cap is reached
    async with serving(settings_for(server_url)) as running:

        async def talk(n: int) -> str:
            body = {"model": MODEL, "messages": [{"role": "user", "content": f"c{n}"}], "stream": True}
            texts = []
            async with running.client.stream("POST", "/v1/chat/completions", json=body) as response:
                async for event in events_of(response):
                    if event.data != "[DONE]":
                        texts.append(json.loads(event.data)["choices"][0]["delta"].get("content") or "")
            return "".join(texts)

        answers = await asyncio.gather(*(talk(n) for n in range(8)))
    assert answers == ["".join(f"c{n}:{k} " for k in range(150)) for n in range(8)]
    assert cuts > 10


async def test_silence_is_filled_with_pings(redis: object, server_url: str, worker: FakeWorker) -> None:
    tap = Tap(worker)
    body = {**CHAT, "stream": True}
    async with (
        serving(settings_for(server_url, ping_s=0.1)) as gateway,
        gateway.client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = response.aiter_lines()
        first = [await anext(lines) for _ in range(6)]
        assert first[0] == ": penstock" and first[2:5] == [": ping", ": ping", ": ping"]
        await tap.to(3)
        assert [line async for line in lines if line][-1] == "data: [DONE]"


async def test_draining_refuses_new_work_and_lets_streams_end(redis: object, server_url: str, worker: FakeWorker) -> None:
    tap = Tap(worker)
    body = {**CHAT, "stream": True}
    async with (
        serving(settings_for(server_url, drain_timeout_s=10)) as gateway,
        gateway.client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        gateway.server.should_exit = True
        await until(lambda: gateway.gateway.draining)
        ready = await gateway.client.get("/readyz")
        assert ready.status_code == 503 and "draining" in ready.text
        assert (await gateway.client.get("/livez")).status_code == 200
        refused = await gateway.client.post("/v1/requests", json=CHAT)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        await tap.to(3)
        assert [line async for line in lines if line][-1] == "data: [DONE]"


async def test_a_drain_that_takes_too_long_closes_streams_but_cancels_nothing(
    redis: object, server_url: str, queue: Queue, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_grace(monkeypatch, disconnect_grace_ms=100)
    tap = Tap(worker)
    async with serving(settings_for(server_url)) as other:
        async with serving(settings_for(server_url, drain_timeout_s=0.2)) as gateway:
            async with gateway.client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
                request = response.headers["x-penstock-request"]
                gateway.server.should_exit = True
                events = [event async for event in events_of(response)]
            assert json.loads(events[-1].data)["error"]["code"] == "draining"
        await tap.to(3)
        done = await other.client.get(f"/v1/requests/{request}?wait=5")
        assert done.json()["status"] == "completed"


@pytest.mark.parametrize("by", ["header", "body"])
async def test_a_wait_that_is_over_keeps_what_the_client_wished_for(
    gateway: Running, queue: Queue, worker: FakeWorker, by: str
) -> None:
    Tap(worker)
    for wish, wished in (("cancel", "cancel"), ("continue", "continue"), (None, "continue")):
        headers, body = {"Prefer": "wait=1"}, dict(CHAT)
        if wish and by == "header":
            headers["X-Penstock-On-Disconnect"] = wish
        elif wish:
            body["on_disconnect"] = wish
        answer = await gateway.client.post("/v1/requests", json=body, headers=headers)
        assert answer.status_code == 202
        await until(lambda: not gateway.gateway.feed._requests)
        record = await queue.record(answer.json()["id"])
        assert record is not None and record.on_disconnect == wished


async def test_a_wait_broken_by_a_drain_hands_out_the_id_and_keeps_the_request(
    redis: object, server_url: str, queue: Queue, worker: FakeWorker
) -> None:
    Tap(worker)
    async with serving(settings_for(server_url, drain_timeout_s=0.1)) as gateway:
        waiting = asyncio.create_task(gateway.client.post("/v1/requests", json=CHAT, headers={"Prefer": "wait=30"}))
        await until(lambda: worker.seen)
        gateway.server.should_exit = True
        answer = await waiting
    assert answer.status_code == 202
    record = await queue.record(answer.json()["id"])
    assert record is not None and record.state is RequestState.RUNNING and record.on_disconnect == "continue"


async def test_readers_of_a_feed_take_dense_seqs_only(queue: Queue, worker: FakeWorker) -> None:
    from dispatch.messages import EntryKind, LogEntry

    feed = Feed(queue, queue, buffer_bytes=100)

    def entry(seq: int, size: int = 1) -> LogEntry:
        return LogEntry("r", seq, 1, EntryKind.CHUNK, b"x" * size, f"{seq:016x}")

    reader = feed.subscribe("r", attached=True)
    for seq in (1, 1, 2, 2, 1):
        reader.offer(entry(seq))
    assert [e.seq for e in await reader.next(0) if e] == [1, 2]
    reader.offer(entry(4))
    assert reader._stale  # a gap: attach before anything else
    reader.offer(entry(3))
    assert not reader.waiting
    full = feed.subscribe("r", attached=True)
    for seq in range(1, 4):
        full.offer(entry(seq, 60))
    assert full.over is Over.CUT
    assert (await queue.attach("s0." + "0" * 32, "")).status is AttachStatus.MISSING


async def test_what_the_feed_never_brought_is_fetched_after_a_silence(queue: Queue, worker: FakeWorker) -> None:
    feed = Feed(queue, queue, buffer_bytes=100_000)
    new = NewRequest(
        id=new_id(),
        model=MODEL,
        input=encode(InferenceRequest(new_id(), MODEL, InputKind.CHAT, Sampling(3))),
        kind=InputKind.CHAT,
        cost_tokens=16,
        deadline_ms=60_000,
        reader=feed.gateway,
    )
    reader = feed.subscribe(new.id, attached=True)  # nobody reads this feed: to the reader it is silent
    await queue.enqueue(new)

    async def ended() -> bool:
        return await state_of(queue, new.id) is RequestState.COMPLETED

    await until(ended)
    assert await reader.next(0.01) == []
    assert [e.kind.value for e in await reader.next(5) if e] == ["chunk", "chunk", "chunk", "end"]


class Gated:
    """A queue whose attaches and detaches wait to be let through; `under_way` names those that do."""

    def __init__(self) -> None:
        self.under_way: list[str] = []
        self.gates: list[asyncio.Event] = []

    async def _pass(self, what: str) -> None:
        self.under_way.append(what)
        self.gates.append(gate := asyncio.Event())
        await gate.wait()
        self.under_way.remove(what)

    async def attach(self, request: str, gateway: str, *, after_seq: int, after_chain: str) -> Attached:
        await self._pass("attach")
        return Attached(AttachStatus.OK, RequestState.RUNNING, True, ())

    async def detach(self, request: str, gateway: str, *, then_continue: bool) -> None:
        await self._pass("detach")


async def test_a_detach_is_over_before_the_next_reader_attaches() -> None:
    """Else Redis could hear of the leaving last, and nobody would bring the new reader anything."""
    gated = Gated()
    feed = Feed(gated, gated, buffer_bytes=100)  # type: ignore[arg-type]
    first = feed.subscribe("r")
    attaching = asyncio.create_task(first.attach())
    await until(lambda: gated.under_way == ["attach"])
    feed.leave(first)  # its detach waits until that attach is over
    for _ in range(5):
        await asyncio.sleep(0)
    gated.gates[0].set()
    await attaching
    await until(lambda: gated.under_way == ["detach"])
    again = asyncio.create_task(feed.subscribe("r").attach())
    for _ in range(20):
        await asyncio.sleep(0)
    assert gated.under_way == ["detach"]
    gated.gates[1].set()
    await until(lambda: gated.under_way == ["attach"])
    gated.gates[2].set()
    await again
    assert feed.open_readers == 1


async def test_a_doubt_during_an_attach_is_not_lost() -> None:
    """Else the reader would wait out its whole silence, and drop what the feed brings meanwhile."""
    gated = Gated()
    feed = Feed(gated, gated, buffer_bytes=100)  # type: ignore[arg-type]
    reader = feed.subscribe("r")
    reading = asyncio.create_task(reader.next(60.0))
    await until(lambda: gated.under_way == ["attach"])
    reader.doubt()
    gated.gates[0].set()
    await until(lambda: len(gated.gates) == 2)
    assert gated.under_way == ["attach"]
    gated.gates[1].set()
    reader.leave()
    assert await reading == []


class Line:
    """A way to Redis that can be cut: while it is, connections break and none can be made."""

    def __init__(self, behind: str, folder: Path) -> None:
        self._behind = behind.removeprefix("unix://")
        self._path = folder / "line.sock"
        self.url = f"unix://{self._path}"
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._carry, self._path)

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        self._path.unlink()
        for writer in list(self._writers):
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._behind)
        self._writers |= {writer, far_writer}

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        self._writers -= {writer, far_writer}


async def test_redis_away_is_503_and_streams_go_on_when_it_is_back(
    redis: object, server_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    worker.plan = lambda request: words_of(9)
    tap = Tap(worker)
    line = Line(server_url, tmp_path)
    await line.open()
    body = {**CHAT, "stream": True}
    async with (
        serving(settings_for(line.url, ping_s=0.2)) as running,
        running.client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        await tap.to(3)
        await line.cut()
        await tap.to(6)
        refused = await running.client.post("/v1/requests", json=CHAT)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "redis_unavailable"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert (await running.client.get("/readyz?verbose")).status_code == 503
        assert (await running.client.get("/livez")).status_code == 200
        assert "penstock_redis_up 0.0" in (await running.client.get("/metrics")).text
        await line.open()
        await tap.to(9)
        frames = [json.loads(text[6:]) async for text in lines if text.startswith("data: {")]
        assert "".join(f["choices"][0]["delta"].get("content") or "" for f in frames) == "".join(words_of(9))
        await until(lambda: _is_ready(running))
    await line.cut()


async def _is_ready(running: Running) -> bool:
    return (await running.client.get("/readyz")).status_code == 200
