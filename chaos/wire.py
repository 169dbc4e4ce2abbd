"""Plain HTTP as clients speak it, each exchange written down: submits, streams, looks, cancels.

No client library stands between, so that what is recorded is what was sent. Never here: what to do next (clients.py).
"""

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx

from chaos.asks import Ask
from chaos.history import Recorder, now_ms
from tests.system.streams import frames

TIMEOUTS = httpx.Timeout(12.0, connect=3.0)
BROKEN = (httpx.HTTPError, httpx.StreamError, ConnectionError)
Leave = Callable[[int], float | None]
"""Called with the number of events so far: None to leave, else how long to wait before reading on."""


@dataclass
class Heard:
    """Where a client stands in a stream."""

    last_id: str = ""
    ended: bool = False
    gone: bool = False
    events: int = 0


class Wire:
    """One client's way to the gateways."""

    def __init__(self, name: str, http: httpx.AsyncClient, gateways: Sequence[str], rng: random.Random, record: Recorder) -> None:
        self.name = name
        self.rng = rng
        self._http = http
        self._gateways = gateways
        self._record = record
        self._count = 0

    def gateway(self) -> str:
        """Any gateway."""
        return self.rng.choice(self._gateways)

    async def submit(self, ask: Ask, kind: str, key: str, terms: dict[str, Any]) -> tuple[int, str]:
        """One POST of the native API. Returns the status (0: no answer) and the id ("" if none)."""
        n = self._submitted(ask, kind, key, terms)
        gateway = self.gateway()
        status, request, code, replayed = 0, "", "", False
        try:
            reply = await self._http.post(
                f"{gateway}/v1/requests", json={**ask.body(), **terms}, headers={"idempotency-key": key} if key else {}
            )
            status, replayed = reply.status_code, "idempotency-replayed" in reply.headers
            document = _json(reply.content)
            request, code = (document.get("id", ""), "") if status == 202 else ("", _code(document))
        except BROKEN as error:
            code = type(error).__name__
        self._record(
            "answer", n=n, client=self.name, gateway=gateway, status=status, id=request, code=code, replayed=replayed, key=key
        )
        return status, request

    async def follow(self, request: str, heard: Heard, leave: Leave) -> None:
        """One connection to a native stream, from where the client stands until it ends, breaks or is left."""
        gateway, started, events = self.gateway(), now_ms(), []
        from_id, how, status, code = heard.last_id, "broken", 0, ""
        headers = {"last-event-id": heard.last_id} if heard.last_id else {}
        try:
            async with self._http.stream("GET", f"{gateway}/v1/requests/{request}/events", headers=headers) as reply:
                status = reply.status_code
                if status != 200:
                    how, code = "status", _code(_json(await reply.aread()))
                    heard.ended = heard.ended or status == 204
                    heard.gone = status in (404, 410)
                    return
                async with aclosing(frames(reply)) as arriving:
                    async for event_id, name, data in arriving:
                        seq, _, chain = event_id.partition("-")
                        if name in ("chunk", "note", "end"):
                            heard.last_id = event_id
                            heard.events += 1
                        if name == "rewind":
                            heard.last_id = ""
                        if name == "error":
                            code = _code(_json(data.encode()))
                        if name != "status":
                            events.append((round(now_ms(), 1), int(seq or 0), chain, name, data))
                        if name == "end":
                            how, heard.ended = "end", True
                            return
                        if await _leaves(leave(heard.events)):
                            how = "left"
                            return
        except BROKEN as error:
            code = code or type(error).__name__
        finally:
            self._heard("native", request, gateway, from_id, started, events, how, status, code)

    async def openai(self, ask: Ask, terms: dict[str, str], leave: Leave) -> None:
        """One streamed OpenAI request."""
        n = self._submitted(ask, "openai-stream", "", terms)
        gateway, started, events = self.gateway(), now_ms(), []
        request, how, status, code = "", "broken", 0, ""
        path = "chat/completions" if ask.chat else "completions"
        try:
            body = {**ask.body(), "stream": True}
            async with self._http.stream("POST", f"{gateway}/v1/{path}", json=body, headers=terms) as reply:
                status, request = reply.status_code, reply.headers.get("x-penstock-request", "")
                if status != 200:
                    how, code = "status", _code(_json(await reply.aread()))
                self._record(
                    "answer", n=n, client=self.name, gateway=gateway, status=status, id=request, code=code, replayed=False, key=""
                )
                n = ""
                if status != 200:
                    return
                async with aclosing(frames(reply)) as arriving:
                    async for event_id, _, data in arriving:
                        seq, _, chain = event_id.partition("-")
                        if data == "[DONE]":
                            how = "end"
                            return
                        document = _json(data.encode())
                        if "error" in document:
                            how, code = "error", _code(document)
                            return
                        events.append((round(now_ms(), 1), int(seq or 0), chain, "chunk", _delta(document)))
                        if await _leaves(leave(len(events))):
                            how = "left"
                            return
        except BROKEN as error:
            code = code or type(error).__name__
        finally:
            if n:
                self._record("answer", n=n, client=self.name, gateway=gateway, status=0, id="", code=code, replayed=False, key="")
            if request:
                self._heard("openai", request, gateway, "", started, events, how, status, code)

    async def openai_whole(self, ask: Ask, terms: dict[str, str]) -> None:
        """One OpenAI request answered in one piece."""
        n = self._submitted(ask, "openai-whole", "", terms)
        gateway, started, request, status, code, text = self.gateway(), now_ms(), "", 0, "", ""
        path = "chat/completions" if ask.chat else "completions"
        try:
            reply = await self._http.post(f"{gateway}/v1/{path}", json=ask.body(), headers=terms, timeout=httpx.Timeout(90.0))
            status, request = reply.status_code, reply.headers.get("x-penstock-request", "")
            document = _json(reply.content)
            if status == 200:
                text = _delta(document)
            else:
                code = _code(document)
        except BROKEN as error:
            code = type(error).__name__
        self._record(
            "answer", n=n, client=self.name, gateway=gateway, status=status, id=request, code=code, replayed=False, key=""
        )
        if request:
            how = "end" if status == 200 else "error"
            events = [(round(now_ms(), 1), 0, "", "chunk", text)] if status == 200 else []
            self._heard("whole", request, gateway, "", started, events, how, status, code)

    async def look(self, request: str, wait_s: int = 0) -> str:
        """The state a client is shown; "" if there was no answer, "unknown" if there is no such request."""
        gateway, status, state, attempt = self.gateway(), 0, "", 0
        try:
            reply = await self._http.get(f"{gateway}/v1/requests/{request}", params={"wait": wait_s} if wait_s else {})
            status, document = reply.status_code, _json(reply.content)
            state, attempt = (document["status"], document["attempt"]) if status == 200 else ("", 0)
        except BROKEN:
            pass
        self._record("seen", client=self.name, id=request, gateway=gateway, status=status, state=state, attempt=attempt)
        return "unknown" if status in (404, 410) else state

    async def result(self, request: str) -> bool:
        """Fetch the result; whether there was one."""
        gateway, status, document = self.gateway(), 0, {}
        try:
            reply = await self._http.get(f"{gateway}/v1/requests/{request}/result")
            status, document = reply.status_code, _json(reply.content)
        except BROKEN:
            pass
        if status == 200:
            self._record(
                "result", client=self.name, id=request, status=status, state=document["status"], text=document["text"],
                finish_reason=document["finish_reason"], usage=document["usage"], error=_code(document),
            )  # fmt: skip
        elif status:
            self._record("result", client=self.name, id=request, status=status, state="", text=None, error=_code(document))
        return status == 200

    async def cancel(self, request: str) -> bool:
        """DELETE; whether it was answered."""
        gateway, status, state = self.gateway(), 0, ""
        sent = now_ms()
        try:
            reply = await self._http.delete(f"{gateway}/v1/requests/{request}")
            status, document = reply.status_code, _json(reply.content)
            state = document["status"] if status == 200 else ""
        except BROKEN:
            pass
        self._record("cancel", client=self.name, id=request, gateway=gateway, status=status, state=state, sent=round(sent, 1))
        return status == 200

    def _submitted(self, ask: Ask, kind: str, key: str, terms: dict[str, Any]) -> str:
        self._count += 1
        n = f"{self.name}-{self._count}"
        self._record(
            "submit",
            n=n,
            client=self.name,
            kind=kind,
            key=key,
            ask=ask.key,
            poison=ask.poison,
            is_fault=ask.is_fault,
            terms=terms,
        )
        return n

    def _heard(
        self, face: str, request: str, gateway: str, from_id: str, started: float, events: Any, how: str, status: int, code: str
    ) -> None:
        self._record(
            "heard", client=self.name, id=request, face=face, gateway=gateway, from_id=from_id, started=round(started, 1),
            events=events, how=how, status=status, code=code,
        )  # fmt: skip


async def _leaves(pause_s: float | None) -> bool:
    """Whether the client goes now (None); else it reads on after its pause."""
    if pause_s:
        await asyncio.sleep(pause_s)
    return pause_s is None


def _json(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _code(document: dict[str, Any]) -> str:
    error = document.get("error")
    return str(error.get("code", "")) if isinstance(error, dict) else ""


def _delta(document: dict[str, Any]) -> str:
    choices = document.get("choices") or [{}]
    message = choices[0].get("delta") or choices[0].get("message") or choices[0]
    return str(message.get("content") or message.get("text") or "")
