"""`run`: an agent process, from its settings to its exit code. Never here: what an agent does (agent.py)."""

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from autoscaler.agent.agent import Agent
from autoscaler.agent.bell import reconcile_handler
from autoscaler.agent.devices import Devices
from autoscaler.agent.processes import check_platform
from autoscaler.agent.state import StateFile
from autoscaler.jobs.guarded import Desk
from autoscaler.jobs.line import host_queue
from autoscaler.jobs.payload import Op, key_of
from autoscaler.jobs.runner import Runner
from autoscaler.launchers.aftermath import Aftermath
from autoscaler.launchers.local import role_environment
from dispatch.errors import PenstockError
from dispatch.fleet import Fleet
from dispatch.processes import with_parent
from dispatch.queue import Queue
from dispatch.redis_client import connect
from dispatch.scale_store import ScaleStore
from dispatch.settings import Settings
from dispatch.tasks import cancelled

_AGAIN_S = 5.0
_END_S = 10.0
_log = logging.getLogger("penstock.agent")


def run(settings: Settings, *, stop_workers: bool = False) -> int:
    """Be this host's agent until SIGTERM: its workers go on. With `stop_workers`: end them all, and return. The exit code."""
    why = check_platform()
    if why:
        raise PenstockError("bad_setting", f"No agent can run here: {why}.", hint="Use the launcher `local`, or `exec`.")
    if not settings.redis.url:
        raise PenstockError("bad_setting", "There is no Redis to take orders from.", hint="Set redis.url.", param="redis.url")
    return asyncio.run(_run(settings, settings.redis.url, stop_workers=stop_workers))


def state_folder(settings: Settings) -> Path:
    """Where the state and the workers' logs are kept."""
    return (settings.agent.state_dir or Path("~/.local/state/penstock")).expanduser()


async def _run(settings: Settings, url: str, *, stop_workers: bool) -> int:
    host = settings.agent.host or socket.gethostname()
    file = StateFile(state_folder(settings), host)
    redis = connect(url)
    queue = Queue(redis, settings.queue.rules(), wait_replica_ms=settings.redis.wait_replica_ms)
    devices = Devices(settings.agent.fake_gpus, settings.agent.report_s)
    agent = Agent(settings, host, ScaleStore(redis), Aftermath(queue, Fleet(redis)), file, devices)
    try:
        if stop_workers:
            await agent.stop_workers()
            return 0
        await _serve(settings, agent, devices, settings.agent.rq_url or url)
        return 0
    finally:
        await devices.close()
        await redis.aclose()
        file.close()


async def _serve(settings: Settings, agent: Agent, devices: Devices, rq_url: str) -> None:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    runners = _runners(settings, agent, rq_url)
    await devices.start()
    for runner in runners:
        runner.start()
    _log.info("Started the agent", extra={"host": agent.host, "group": settings.agent.group, "bell": bool(runners)})
    tending = asyncio.create_task(agent.run(), name="agent")
    delivering = asyncio.create_task(_deliver_webhooks(settings), name="webhooks")
    waiting = asyncio.create_task(ending.wait())
    try:
        await asyncio.wait({tending, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if tending.done():
            tending.result()
    finally:
        await cancelled(tending, waiting, delivering)
        await asyncio.gather(*(asyncio.to_thread(runner.stop) for runner in runners))


def _runners(settings: Settings, agent: Agent, rq_url: str) -> list[Runner]:
    """Who takes jobs: without a secret nobody is rung, and the agent looks by itself."""
    if settings.agent.secret is None:
        return []
    key = key_of(settings.agent.secret.get_secret_value())
    handler = reconcile_handler(agent, asyncio.get_running_loop())
    return [Runner(rq_url, [host_queue(agent.host)], Desk(agent.host, key, {Op.RECONCILE: handler}))]


async def _deliver_webhooks(settings: Settings) -> None:
    """Keep the process of webhooks running: strangers' servers answer it, so it stands apart. It dies with this one."""
    if not settings.agent.webhooks or settings.webhook.secret is None:
        return
    environment = with_parent(role_environment(os.environ, settings))
    while True:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "autoscaler.webhooks", env=environment, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), _END_S)
            if process.returncode is None:
                process.kill()
        _log.warning("webhooks are not delivered: start again", extra={"code": code, "again_in_s": _AGAIN_S})
        await asyncio.sleep(_AGAIN_S)
