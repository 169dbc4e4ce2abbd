"""Writes of one turn go out together, in order, before the end; who writes on and on is not kept from feeling it."""

import asyncio
from collections.abc import Iterable
from typing import Any, cast

from gateway.bell import Bell
from gateway.joining import JoiningTransport
from gateway.leaving import Leaving


class Inner:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def write(self, data: bytes) -> None:
        self.said.append(data)

    def write_eof(self) -> None:
        self.said.append("eof")

    def writelines(self, list_of_data: Iterable[bytes]) -> None:
        self.said.append(list(list_of_data))

    def close(self) -> None:
        self.said.append("close")

    def abort(self) -> None:
        self.said.append("abort")

    def is_closing(self) -> bool:
        return False


async def test_writes_of_one_turn_are_one() -> None:
    inner = Inner()
    transport = JoiningTransport(cast(asyncio.Transport, inner))
    transport.write(b"head ")
    transport.write(b"body")
    assert inner.said == [] and not transport.is_closing()
    await asyncio.sleep(0)
    transport.write(b"last")
    transport.close()
    await asyncio.sleep(0)
    assert inner.said == [b"head body", b"last", "close"]


async def test_much_goes_out_at_once_and_nothing_after_an_abort() -> None:
    inner = Inner()
    transport = JoiningTransport(cast(asyncio.Transport, inner))
    for _ in range(5):
        transport.write(b"x" * 30_000)
    assert [len(piece) for piece in inner.said] == [90_000]
    transport.abort()
    await asyncio.sleep(0)
    assert inner.said[1:] == ["abort"]


async def test_no_way_to_write_overtakes_what_waits() -> None:
    inner = Inner()
    transport = JoiningTransport(cast(asyncio.Transport, inner))
    transport.write(b"head ")
    transport.writelines([b"bo", b"dy"])
    transport.write_eof()
    await asyncio.sleep(0)
    assert inner.said == [b"head body", "eof"]


async def test_what_an_abort_threw_away_counts_no_more() -> None:
    inner = Inner()
    transport = JoiningTransport(cast(asyncio.Transport, inner))
    transport.write(b"x" * 40_000)
    transport.abort()
    transport.write(b"y" * 40_000)
    assert inner.said == ["abort"]


async def test_a_client_that_left_is_told_also_to_who_asks_late() -> None:
    leaving, heard = Leaving(), list[str]()
    forgotten = heard.clear
    leaving.ask(lambda: heard.append("early"))
    leaving.ask(forgotten)
    leaving.forget(forgotten)
    leaving.happened()
    leaving.ask(lambda: heard.append("late"))
    assert heard == ["early", "late"]


async def test_a_bell_is_heard_or_not() -> None:
    bell = Bell()
    bell.ring()  # nobody waits: it is of no matter later
    assert not await bell.heard(0.01)
    waiting = asyncio.create_task(bell.heard(10))
    await asyncio.sleep(0)
    bell.ring()
    bell.ring()
    assert await waiting
