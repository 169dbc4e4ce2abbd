"""The upstream engine: any OpenAI-compatible server by URL (vLLM, SGLang, TGI, llama.cpp, Ollama, ...).

It streams text; token ids stay with the server, so what was begun there cannot be continued elsewhere. Reasoning text and
tool calls are not carried yet: such requests are refused rather than cut short in silence. Never here: tokenizing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx2
import msgspec

from dispatch.errors import PenstockError
from dispatch.messages import FinishReason, InferenceRequest, InputKind, Sampling
from dispatch.pricing import cost_tokens, prompt_tokens
from dispatch.reports import ModelCard
from dispatch.settings import WorkerSettings
from worker.engines.base import Chunk, Cost, EngineError, EngineInfo, EngineLoad
from worker.engines.naming import served_name
from worker.engines.sse import SseParser

_PATHS: Mapping[InputKind, str] = {InputKind.CHAT: "/chat/completions", InputKind.COMPLETION: "/completions"}
_SLOTS = 64
_LIMIT_TOKENS = 1_000_000
_WEIGHT = 1_000.0
"""Nothing is known of its speed: about one good GPU. Nor of its prefill, so that no reckoned speed closes it."""
_WAIT_S = 30.0
"""How long `start` waits for a server that is itself just starting."""
_SILENCE_S = 300.0
"""How long the server may say nothing in the middle of an answer (a long prefill, a full queue of its own)."""
_IDLE_S = 2.0
_MAX_STALE = 3
_MAX_ERROR_BYTES = 65_536
_RETRYABLE_STATUS = frozenset({408, 425, 429})
_LIMITS = ("max_tokens", "max_completion_tokens")
_UNSUPPORTED_FIELDS = ("tools", "functions", "logprobs")


class UpstreamEngine:
    """See the module's docstring."""

    def __init__(self, settings: WorkerSettings, *, wait_s: float = _WAIT_S) -> None:
        url = settings.upstream_url
        if not url or not url.startswith(("http://", "https://")):
            raise PenstockError(
                "bad_setting",
                "The upstream engine has no server to ask." if not url else f"{url!r} is not an http(s) URL.",
                hint="Set worker.upstream_url to an OpenAI-compatible base URL, such as http://127.0.0.1:8080/v1.",
                param="worker.upstream_url",
            )
        self.progress = "starting"
        self._url = url.rstrip("/")
        self._model = settings.model
        self._served_name = served_name(settings, settings.model)
        self._slots = settings.slots or _SLOTS
        self._limit_tokens = settings.kv_tokens or _LIMIT_TOKENS
        self._wait_s = wait_s
        self._include_usage = True
        key = settings.upstream_api_key
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=httpx2.Timeout(connect=5.0, read=_SILENCE_S, write=30.0, pool=None),
            limits=httpx2.Limits(
                max_connections=self._slots + 4, max_keepalive_connections=self._slots, keepalive_expiry=_IDLE_S
            ),
        )

    async def start(self) -> EngineInfo:
        self.progress = f"waiting for {self._url}"
        listed = await self._wait_for_models()
        entry = next((m for m in listed if m.get("id") == self._model), None)
        if entry is None:
            # Some servers list other models than they answer for; a real request decides.
            await self._try_model([str(m.get("id")) for m in listed])
        context = (entry or {}).get("max_model_len")
        self.progress = ""
        card = ModelCard(
            name=self._served_name,
            engine="upstream",
            context_tokens=context if isinstance(context, int) else self._limit_tokens,
            kv_bytes_per_token=0,
            max_cost_tokens=self._limit_tokens,
            created_at_s=int(time.time()),
        )
        return EngineInfo(
            card=card,
            limit_tokens=self._limit_tokens,
            slots=self._slots,
            weight=_WEIGHT,
            device="upstream",
        )

    def cost(self, request: InferenceRequest) -> Cost:
        return Cost(cost_tokens(prompt_tokens(request), request.sampling.max_tokens))

    async def generate(self, request: InferenceRequest, done: Sequence[int]) -> AsyncIterator[Chunk]:
        if done:
            raise EngineError(
                "upstream_error", "An upstream's answer cannot be continued after a part was sent.", retryable=False
            )
        path, body = _path(request), _body(request, self._model)
        answer = _Answer(request)
        try:
            response = await self._ask(path, body)
            try:
                async for chunk in answer.read(response):
                    yield chunk
            finally:
                await response.aclose()
        except httpx2.RequestError as error:
            raise _unreachable(error) from error

    async def _ask(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        """The server's answer, its body still to be read."""
        stale = _MAX_STALE
        while True:
            if self._include_usage:
                body["stream_options"] = {"include_usage": True}
            sending = self._client.build_request("POST", self._url + path, json=body)
            try:
                response = await self._client.send(sending, stream=True)
            except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
                # The server closed an idle connection just as we used it again.
                stale -= 1
                if not stale:
                    raise
                continue
            if response.status_code == 200:
                return response
            error = await _error_of(response)
            if response.status_code in (400, 422) and "stream_options" in body and "stream_options" in str(error):
                # An older server that does not know the field: ask again without, from now on.
                self._include_usage = False
                del body["stream_options"]
                continue
            raise error

    async def probe(self) -> None:
        messages = ({"role": "user", "content": "ping"},)
        one = Sampling(max_tokens=1)
        limit = {"max_tokens": 1}
        chat = InferenceRequest("probe", self._model, InputKind.CHAT, one, messages=messages, body=limit)
        completion = InferenceRequest("probe", self._model, InputKind.COMPLETION, one, prompt="ping", body=limit)
        try:
            await self._once(chat)
        except EngineError as error:
            if error.retryable:
                raise
            await self._once(completion)  # a base model has no chat template

    async def canary(self) -> tuple[int, ...]:
        return ()  # token ids are the server's own affair

    def steps(self) -> int:
        # A server may think for minutes before its first token; how long it may be silent is bounded by _SILENCE_S.
        return int(time.monotonic() * 10)

    def load(self) -> EngineLoad:
        return EngineLoad()  # its memory and its steps are the server's own affair

    def kill(self) -> None:
        """There is nothing of ours that could hang."""

    async def close(self) -> None:
        await self._client.aclose()

    async def _once(self, request: InferenceRequest) -> None:
        async for _ in self.generate(request, ()):
            pass

    async def _wait_for_models(self) -> list[dict[str, Any]]:
        """What the server lists, once it answers at all; nothing if it has no such list."""
        give_up_at = time.monotonic() + self._wait_s
        while True:
            try:
                response = await self._client.get(f"{self._url}/models", timeout=10.0)
                break
            except httpx2.TransportError as error:
                if time.monotonic() > give_up_at:
                    raise PenstockError(
                        "bad_setting",
                        f"The upstream server {self._url} does not answer ({_name(error)}).",
                        hint="Start it, or correct worker.upstream_url.",
                        param="worker.upstream_url",
                    ) from error
                await asyncio.sleep(min(0.5, self._wait_s / 10))
        if response.status_code in (401, 403):
            raise PenstockError(
                "bad_setting",
                f"The upstream server {self._url} refuses our API key ({response.status_code}).",
                hint="Set worker.upstream_api_key.",
                param="worker.upstream_api_key",
            )
        try:
            data = msgspec.json.decode(response.content)["data"] if response.status_code == 200 else []
            return [m for m in data if isinstance(m, dict)]
        except (msgspec.DecodeError, KeyError, TypeError):
            return []

    async def _try_model(self, listed: Sequence[str]) -> None:
        self.progress = f"asking {self._url} for {self._model}"
        try:
            await self.probe()
        except EngineError as error:
            raise PenstockError(
                "bad_setting",
                f"The upstream server {self._url} does not answer for the model {self._model!r}: {error}",
                hint=f"It serves: {', '.join(listed)}." if listed else "Set worker.model to the name that server uses.",
                param="worker.model",
            ) from error


class _Answer:
    """One streamed answer being read: the text as it comes, then its ending with the counts."""

    def __init__(self, request: InferenceRequest) -> None:
        self._prompt_tokens = prompt_tokens(request)
        self._completion_tokens: int | None = None
        self._pieces = 0
        self._finish: FinishReason | None = None

    async def read(self, response: httpx2.Response) -> AsyncIterator[Chunk]:
        if response.headers.get("content-type", "").startswith("application/json"):
            # The server does not stream: its whole answer is one piece.
            yield self._take(await response.aread())
        else:
            parser = SseParser()
            async for line in response.aiter_lines():
                data = parser.feed(line)
                if data == "[DONE]":
                    break
                if data and (chunk := self._take(data)).text:
                    yield chunk
            if (data := parser.flush()) and data != "[DONE]":
                yield self._take(data)
        if self._finish is None:
            raise EngineError("upstream_error", "The upstream server's answer broke off.", retryable=True)
        count = self._pieces if self._completion_tokens is None else self._completion_tokens
        yield Chunk(finish_reason=self._finish, prompt_tokens=self._prompt_tokens, completion_tokens=count)

    def _take(self, data: str | bytes) -> Chunk:
        try:
            event = msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.DecodeError as error:
            # Servers have been seen to put an error's text into the stream unquoted.
            raise EngineError("upstream_error", "The upstream server sent something that is not JSON.", retryable=True) from error
        if event.get("error"):
            raise EngineError("upstream_error", f"The upstream server failed: {_message(event)}", retryable=True)
        if usage := event.get("usage"):
            self._prompt_tokens = usage.get("prompt_tokens") or self._prompt_tokens
            self._completion_tokens = usage.get("completion_tokens", self._completion_tokens)
        choice: dict[str, Any] = next(iter(event.get("choices") or ()), {})
        if reason := choice.get("finish_reason"):
            self._finish = FinishReason.LENGTH if reason == "length" else FinishReason.STOP
        text = (choice.get("delta") or choice.get("message") or {}).get("content") or choice.get("text") or ""
        self._pieces += bool(text)
        return Chunk(text=text)


def _path(request: InferenceRequest) -> str:
    if request.kind not in _PATHS:
        raise EngineError("unsupported", "An upstream takes chats and completions, not opaque inputs.", retryable=False)
    asked = next((name for name in _UNSUPPORTED_FIELDS if request.body.get(name)), None)
    if asked is None and request.body.get("n", 1) not in (None, 1):
        asked = "n"
    if asked:
        raise EngineError("unsupported", f"{asked!r} is not carried through to upstream servers yet.", retryable=False)
    return _PATHS[request.kind]


def _body(request: InferenceRequest, model: str) -> dict[str, Any]:
    """What to send: the client's own fields, ours over them. What the client did not name is left to the server's own
    defaults: an answer's limit, too, for the one in `sampling` is only what the queue priced it by."""
    sampling = request.sampling
    body: dict[str, Any] = {k: v for k, v in request.body.items() if k not in (*_LIMITS, "stream_options")}
    body |= {"model": model, "stream": True}
    if any(request.body.get(name) for name in _LIMITS):
        body["max_tokens"] = sampling.max_tokens
    if request.kind is InputKind.CHAT:
        body["messages"] = list(request.messages)
    else:
        body["prompt"] = request.prompt
    given = {"temperature": (sampling.temperature, 1.0), "top_p": (sampling.top_p, 1.0), "top_k": (sampling.top_k, 0)}
    body |= {name: value for name, (value, default) in given.items() if value != default}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    return body


async def _error_of(response: httpx2.Response) -> EngineError:
    """The server's refusal, typed: whose fault, and whether another try may help."""
    content = b""
    try:
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > _MAX_ERROR_BYTES:
                break
    finally:
        await response.aclose()
    try:
        body: Any = msgspec.json.decode(content)
    except msgspec.DecodeError:
        body = content.decode("utf-8", "replace")
    status, message = response.status_code, _message(body)
    if status in _RETRYABLE_STATUS or status >= 500 or status < 400:
        return EngineError("upstream_error", f"The upstream server answered {status}: {message}", retryable=True)
    if status in (401, 403):
        return EngineError("upstream_error", f"The upstream server refuses our API key ({status}).", retryable=False)
    error = body.get("error") if isinstance(body, dict) else None
    too_long = isinstance(error, dict) and error.get("code") == "context_length_exceeded"
    return EngineError("context_length_exceeded" if too_long else "upstream_rejected", message, retryable=False)


def _message(body: Any) -> str:
    """The words in an error body, whichever of the usual shapes it has; bounded."""
    for name in ("error", "detail", "message"):
        if isinstance(body, dict) and body.get(name):
            return _message(body[name])
    text = body if isinstance(body, str) else msgspec.json.encode(body).decode()
    return text.strip()[:500] or "no message"


def _unreachable(error: httpx2.RequestError) -> EngineError:
    what = "said nothing for too long" if isinstance(error, httpx2.TimeoutException) else "closed or refused the connection"
    return EngineError("upstream_error", f"The upstream server {what} ({_name(error)}).", retryable=True)


def _name(error: Exception) -> str:
    return type(error).__name__
