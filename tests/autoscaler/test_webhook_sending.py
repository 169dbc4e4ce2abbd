"""One POST to a URL that a client named: it reaches who was meant, and nobody's inside."""

import asyncio
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autoscaler.webhooks import sending
from autoscaler.webhooks.backoff import next_wait_s, retry_after_of
from autoscaler.webhooks.sending import Answer, post
from dispatch.addresses import is_public
from tests.autoscaler.receiver import OK, Receiver, answer

PUBLIC = ["8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "1.1.1.1"]
INSIDE = [
    *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1"),
    *("198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:127.0.0.1", "2002:7f00:1::1", "2002:808:808::1"),
    *("64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1", "2001:0:7f00:1::1", "100::1", "3fff::1", "5f00::1"),
    *("localhost", "", "0x7f000001", "2130706433", "127.1", "8.8.8.8.8"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_the_open_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", INSIDE)
def test_not_the_open_internet(address: str) -> None:
    assert not is_public(address)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver().listening() as found:
        yield found


async def send(url: str, *addresses: str, allow_private: bool = True, timeout_s: float = 2.0) -> Answer:
    async def known(host: str, port: int) -> Sequence[str]:
        return addresses

    resolve = known if addresses else sending.resolve
    return await post(url, b"{}", {"webhook-id": "evt"}, timeout_s=timeout_s, allow_private=allow_private, resolve=resolve)


async def test_it_arrives_at_the_address_that_was_resolved_under_its_own_name(receiver: Receiver) -> None:
    got = await send(f"http://hook.example:{receiver.port}/a/b?c=d%20e", "127.0.0.1")
    assert (got.status, got.error) == (204, "")
    there = receiver.got[0]
    assert there.path == "/a/b?c=d%20e" and there.headers["host"] == f"hook.example:{receiver.port}"
    assert there.headers["webhook-id"] == "evt" and there.headers["content-type"] == "application/json" and there.body == b"{}"


@pytest.mark.parametrize(
    "addresses",
    [("127.0.0.1",), ("8.8.8.8", "127.0.0.1"), ("::ffff:127.0.0.1",), ("169.254.169.254",)],
    ids=lambda addresses: "+".join(addresses),
)
async def test_a_name_that_leads_inside_is_not_connected_to(receiver: Receiver, addresses: tuple[str, ...]) -> None:
    got = await send(f"http://hook.example:{receiver.port}/", *addresses, allow_private=False)
    assert (got.status, got.error) == (0, "address_refused") and not receiver.connections


@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f000001", "2130706433", "127.1", "localhost", "[::ffff:127.0.0.1]"])
async def test_other_spellings_of_here_are_refused_by_what_they_resolve_to(receiver: Receiver, host: str) -> None:
    got = await send(f"http://{host}:{receiver.port}/", allow_private=False)
    assert got.status == 0 and got.error in ("address_refused", "name_not_found") and not receiver.connections


async def test_the_name_is_resolved_once(receiver: Receiver) -> None:
    asked = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["192.0.2.1"] if len(asked) == 1 else ["127.0.0.1"]

    got = await post(
        f"http://rebinding.example:{receiver.port}/", b"{}", {}, timeout_s=0.3, allow_private=True, resolve=rebinding
    )
    assert got.status == 0 and asked == ["rebinding.example"] and not receiver.connections


async def test_a_second_address_is_tried_where_the_first_refuses(receiver: Receiver) -> None:
    got = await send(f"http://hook.example:{receiver.port}/", "127.0.0.9", "127.0.0.1")
    assert got.status == 204


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(receiver: Receiver, status: int) -> None:
    async with Receiver().listening() as inside:
        receiver.answers = [answer(status, f"location: {inside.url}")]
        got = await send(receiver.url)
        assert (got.status, got.error) == (status, f"http_{status}") and not inside.connections


async def test_no_proxy_of_the_environment_is_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver().listening() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await send(receiver.url)).status == 204 and not proxy.connections


async def test_a_receiver_that_drips_has_its_time_and_no_more(receiver: Receiver) -> None:
    receiver.drip_s = 0.05
    started = time.monotonic()
    got = await send(receiver.url, timeout_s=0.4)
    assert (got.status, got.error) == (0, "timeout") and 0.4 <= time.monotonic() - started < 1.5


async def test_a_receiver_that_never_answers(receiver: Receiver) -> None:
    receiver.answers = [None]
    assert (await send(receiver.url, timeout_s=0.2)).error == "timeout"


async def test_little_is_read_of_a_long_answer(receiver: Receiver) -> None:
    receiver.answers = [answer(200, body=b"x" * 10_000_000)]
    got = await send(receiver.url)
    assert got.status == 200 and 0 < got.read_bytes <= sending.MOST_READ_BYTES + 65_536


async def test_a_compressed_answer_is_not_unpacked(receiver: Receiver) -> None:
    receiver.answers = [answer(200, "content-encoding: gzip", body=b"no gzip at all")]
    got = await send(receiver.url)
    assert (got.status, got.read_bytes) == (200, 14)


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000])
async def test_what_is_no_http(receiver: Receiver, said: bytes) -> None:
    receiver.answers = [said]
    assert (await send(receiver.url)).error == "broken_answer"


async def test_nobody_there_and_no_such_name() -> None:
    async with Receiver().listening() as closed:
        url = closed.url
    assert (await send(url)).error == "connect_failed"
    assert (await send("http://nowhere.invalid/")).error in ("name_not_found", "timeout")
    assert (await send(f"http://{'x' * 70}.example/")).error == "name_not_found"


@pytest.fixture
def certified(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for hook.example that nobody vouches for, and its key."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hook.example"),
            *("-addext", "subjectAltName=DNS:hook.example", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def test_tls_is_for_the_name_and_believed_only_with_a_certificate(certified: tuple[Path, Path]) -> None:
    certificate, key = certified
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    asked: list[str | None] = []
    tls.sni_callback = lambda _, name, __: asked.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with Receiver([OK]).listening(tls) as receiver:
        url = f"https://hook.example:{receiver.port}/"
        assert (await send(url, "127.0.0.1")).error == "tls_failed" and not receiver.got
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sending, "_tls", lambda: trusting)
            assert (await send(url, "127.0.0.1")).status == 204
            assert (await send(f"https://other.example:{receiver.port}/", "127.0.0.1")).error == "tls_failed"
    assert asked == ["hook.example", "hook.example", "other.example"]


def test_waits_grow_threefold_to_an_hour() -> None:
    assert [next_wait_s(n, 5.0, 0.5) for n in (1, 2, 3, 4)] == [5.0, 15.0, 45.0, 135.0]
    assert next_wait_s(40, 5.0, 0.5) == 3600.0
    assert (next_wait_s(1, 5.0, 0.0), next_wait_s(1, 5.0, 1.0)) == (3.75, 6.25)
    assert next_wait_s(1, 5.0, 0.5, retry_after_s=60.0) == 60.0
    assert next_wait_s(2, 5.0, 0.5, retry_after_s=1.0) == 15.0
    assert next_wait_s(1, 5.0, 0.5, retry_after_s=1e9) == 3600.0


def test_retry_after() -> None:
    now = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
    assert retry_after_of("120", now) == 120.0
    assert retry_after_of("Sun, 22 Nov 2026 12:02:00 GMT", now) == 120.0
    assert retry_after_of("Sun, 22 Nov 2020 12:02:00 GMT", now) == 0.0
    assert retry_after_of("9" * 400, now) == 3600.0
    for nonsense in (None, "", "soon", "-5", "1e9", "Sun, 22 Nov 2026", "١"):
        assert retry_after_of(nonsense, now) is None, nonsense


async def test_a_slow_body_takes_nothing_from_an_answer_that_came(receiver: Receiver) -> None:
    receiver.answers = [b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nslow"]
    stop = asyncio.get_running_loop().time()
    assert (await send(receiver.url)).status == 200 and asyncio.get_running_loop().time() - stop < 1.5
