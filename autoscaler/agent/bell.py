"""What the bell does: an RQ job that says only "look". Never here: RQ, signatures (autoscaler/jobs), looking (agent.py)."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from autoscaler.jobs.payload import JobRefused, Payload


class Rings(Protocol):
    """Who is rung."""

    host: str

    @property
    def epoch(self) -> int:
        """Of the newest orders it carried out."""
        ...

    def ring(self) -> None:
        """Look at the orders now."""
        ...


def reconcile_handler(agent: Rings, loop: asyncio.AbstractEventLoop) -> Callable[[Payload], Mapping[str, Any]]:
    """What runs in the runner's thread."""

    def reconcile(payload: Payload) -> Mapping[str, Any]:
        if payload.host != agent.host:
            raise JobRefused("The job was not signed for this very host.")
        if payload.epoch < agent.epoch:
            raise JobRefused("The job speaks of orders older than those carried out.")
        loop.call_soon_threadsafe(agent.ring)
        return {"host": agent.host, "epoch": payload.epoch}

    return reconcile
