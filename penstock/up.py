"""`penstock up`: a household from the first signal to the last. Never here: what is in it (household.py)."""

import asyncio
import signal
from contextlib import suppress

from dispatch.tasks import cancelled
from penstock import console
from penstock.failures import OK
from penstock.folders import data_folder, prepare_logs
from penstock.household import Household, Wanted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(wanted: Wanted) -> int:
    """Until Ctrl-C (0). Raises Failure when something vital is beyond help; nothing is left running either way."""
    with data_folder(wanted.settings, ephemeral=wanted.ephemeral) as (folder, lock):
        return asyncio.run(_live(Household(wanted, folder, lock, prepare_logs(folder))))


async def _live(household: Household) -> int:
    stop, at_once = asyncio.Event(), asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, _on_signal, stop, at_once)
    console.title()
    living = asyncio.create_task(_start_and_watch(household), name="household")
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({living, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if living.done():
            living.result()
        return OK
    finally:
        await cancelled(living, stopping)
        await household.stop(at_once)


async def _start_and_watch(household: Household) -> None:
    await household.start()
    await household.watch()


def _on_signal(stop: asyncio.Event, at_once: asyncio.Event) -> None:
    if stop.is_set():
        at_once.set()
        return
    stop.set()
    with suppress(OSError):  # the terminal may be what went away
        console.event("stopping: workers finish what they hold (Ctrl-C again: at once)")
