"""One try to deliver one webhook: read what is owed, sign it, send it, write down what came of it.

Any number may run at once and repeat each other: a receiver knows the event again by its `webhook-id`.
Never here: RQ (relay.py, runner.py), addresses and sockets (sending.py).
"""

import logging
import random
import time
from collections import Counter

from autoscaler.webhooks.backoff import next_wait_s
from autoscaler.webhooks.sending import Answer, Resolve, post, resolve
from dispatch.outbox import Outbox, Verdict
from dispatch.settings_scale import WebhookSettings
from dispatch.signing import secret_bytes, signed
from dispatch.webhooks import Webhook, WebhookState, event_id, event_of, host_of

_log = logging.getLogger("penstock.webhooks")
_GONE = 410
_PUT_OFF = 6.0  # time limits: 30 s by default
_SLOW_MS = 1000
_MOST_SLOW = 1000


class Delivery:
    """Delivers what one outbox owes. `settings.secret` must be set.

    `a_slow_host`: no more tries at once to a host that did not answer the last one in good time. The webhooks of others must
    not stand behind a receiver that is dead.
    """

    def __init__(self, outbox: Outbox, settings: WebhookSettings, *, a_slow_host: int = 2, resolve: Resolve = resolve) -> None:
        assert settings.secret is not None
        self._outbox = outbox
        self._settings = settings
        self._key = secret_bytes(settings.secret.get_secret_value())
        self._resolve = resolve
        self._a_slow_host = a_slow_host
        self._at: Counter[str] = Counter()
        self._slow: set[str] = set()

    async def deliver(self, request: str, number: int) -> str:
        """Make the try with that number, unless it was made before. Returns in a word what came of it."""
        webhook = await self._outbox.webhook(request)
        if webhook is None:
            return "unknown"
        if webhook.state is not WebhookState.OWED or number != webhook.tried + 1:
            return "superseded"
        host = host_of(webhook.url)
        if host in self._slow and self._at[host] >= self._a_slow_host:
            wait_ms = int(_PUT_OFF * self._settings.timeout_s * (1 + random.random()) * 1000)
            await self._outbox.note(request, number, Verdict.LATER, wait_ms=wait_ms)
            return "put_off"
        self._at[host] += 1
        try:
            answer = await self._send(webhook)
        finally:
            self._at[host] -= 1
            if not self._at[host]:
                del self._at[host]
        self._learn(host, answer)
        verdict, wait_s = self._judge(answer, number)
        state = await self._outbox.note(
            request,
            number,
            verdict,
            status=answer.status,
            error=answer.error,
            took_ms=answer.took_ms,
            wait_ms=int(wait_s * 1000),
        )
        facts = {
            "request": request,
            "host": host,
            "try": number,
            "status": answer.status,
            "error": answer.error,
            "took_ms": answer.took_ms,
        }
        if verdict is Verdict.DELIVERED:
            _log.info("a webhook was delivered", extra=facts)
        elif verdict is Verdict.GIVEN_UP:
            _log.warning("a webhook is given up", extra=facts)
        else:
            _log.info("a webhook could not be delivered: try again", extra={**facts, "wait_s": round(wait_s, 1)})
        return state or "unknown"

    def _learn(self, host: str, answer: Answer) -> None:
        if answer.status and answer.took_ms < _SLOW_MS:
            self._slow.discard(host)
        elif len(self._slow) < _MOST_SLOW:
            self._slow.add(host)

    async def _send(self, webhook: Webhook) -> Answer:
        body = event_of(webhook)
        # Each try is signed anew: receivers refuse what is older than some minutes by their own clocks.
        headers = signed(self._key, event_id(webhook.request), int(time.time()), body)
        return await post(
            webhook.url,
            body,
            headers,
            timeout_s=self._settings.timeout_s,
            allow_private=self._settings.allow_private,
            resolve=self._resolve,
        )

    def _judge(self, answer: Answer, number: int) -> tuple[Verdict, float]:
        if 200 <= answer.status < 300:
            return Verdict.DELIVERED, 0.0
        if answer.status == _GONE or number >= self._settings.tries:
            return Verdict.GIVEN_UP, 0.0
        return Verdict.AGAIN, next_wait_s(number, self._settings.backoff_s, random.random(), answer.retry_after_s)
