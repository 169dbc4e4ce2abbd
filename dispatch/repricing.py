"""Saying that a held request costs more than it was granted at. Never here: when that is so (worker/admission.py)."""

from dispatch.messages import Grant, WriteStatus
from dispatch.queue import Queue


async def reprice(queue: Queue, grant: Grant, cost_tokens: int) -> WriteStatus:
    """Its next grant takes so much of a room; a cost never falls. May be repeated."""
    reply = await queue._run("reprice", id=grant.request, attempt=grant.attempt, nonce=grant.nonce, cost=cost_tokens)
    return WriteStatus(reply.decode())
