"""`run_webhooks`: a process that relays what is owed and delivers it. Run any number, on any host.

Never here: what a delivery is (delivery.py), starting this process (`penstock up` and the agent do).
"""

import asyncio
import concurrent.futures
import contextlib
import signal
import socket
from collections.abc import Mapping
from typing import Any

from autoscaler.jobs.guarded import Desk
from autoscaler.jobs.line import WEBHOOKS, JobLine
from autoscaler.jobs.payload import JobRefused, Op, Payload, key_of
from autoscaler.jobs.runner import Runner
from autoscaler.webhooks.delivery import Delivery
from autoscaler.webhooks.relay import AT_ONCE, Relay, again_s
from dispatch.errors import PenstockError
from dispatch.outbox import Outbox
from dispatch.processes import die_with_parent
from dispatch.redis_client import connect
from dispatch.settings import Settings
from dispatch.tasks import cancelled

_THREADS = 32


def run_webhooks(settings: Settings) -> int:
    """Relay and deliver until SIGTERM. Blocks; returns the exit code. Raises PenstockError when no webhook could be signed."""
    die_with_parent()
    return asyncio.run(_run(settings))


def rq_url_of(settings: Settings) -> str:
    """The Redis that carries jobs. Raises PenstockError("bad_setting")."""
    url = settings.agent.rq_url or settings.redis.url
    if not url:
        raise PenstockError("bad_setting", "There is no Redis for webhooks.", hint="Set redis.url.", param="redis.url")
    return url


def jobs_key_of(settings: Settings) -> bytes:
    """What signs the jobs of webhooks: whoever takes them has this secret anyway. Raises PenstockError("bad_setting")."""
    if settings.webhook.secret is None:
        raise PenstockError(
            "bad_setting",
            "There is no webhook.secret: no webhook could be signed.",
            hint='Set it to "whsec_" and the base64 of 32 random bytes, the same for gateways, autoscaler and agents.',
            param="webhook.secret",
        )
    return key_of(settings.webhook.secret.get_secret_value())


async def _run(settings: Settings) -> int:
    key, url = jobs_key_of(settings), rq_url_of(settings)
    loop = asyncio.get_running_loop()
    # Names are resolved in threads, too: a slow resolver must not hold up the relay.
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(_THREADS))
    redis, line = connect(settings.redis.url or url), JobLine(url, key)
    outbox = Outbox(redis, settings.queue.rules())
    delivery = Delivery(outbox, settings.webhook)
    patience_s = again_s(settings.webhook)

    def handle(payload: Payload) -> Mapping[str, Any]:
        """Runs in a thread of RQ's; the work is done in this loop."""
        request, number = payload.body.get("request"), payload.body.get("try")
        if not isinstance(request, str) or not isinstance(number, int):
            raise JobRefused("The job names no request and try.")
        return {"state": asyncio.run_coroutine_threadsafe(delivery.deliver(request, number), loop).result(patience_s)}

    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    desk = Desk(settings.agent.host or socket.gethostname(), key, {Op.WEBHOOK: handle})
    runners = [Runner(url, [WEBHOOKS], desk) for _ in range(AT_ONCE)]
    relay = asyncio.create_task(Relay(outbox, line, settings.webhook).run())
    try:
        for runner in runners:
            runner.start()
        await ended.wait()
    finally:
        await cancelled(relay)
        await asyncio.gather(*(asyncio.to_thread(runner.stop, settings.webhook.timeout_s + 2) for runner in runners))
        with contextlib.suppress(Exception):
            await line.close()
        await redis.aclose()
    return 0
