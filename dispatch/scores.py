"""THE strategies: what orders the parked pulls for a request. Each is a score, lowest is next, ties by worker id. Pure.

The same formulas stand in Lua (scripts/lib/pull.lua and choose.lua), in the same order of operations: both compute in IEEE
doubles, and a test holds them equal. So does the simulator use them. Never here: which pulls are parked and what has room.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

CANDIDATES = 8
"""`pull`: how many parked pulls with room, taken in the order of their standing score, are compared by the score itself."""

# `pull`, found by simulation (docs/decisions/0016): on several traces, fleets and loads, not tuned to one.
WAIT_GROWTH = 1.5
WAIT_KNEE_S = 2.0
"""A wait for the first token weighs more the longer it is, up to this; from there on 1 + growth x knee its seconds."""
ANSWER_TOKENS = 2_000.0
"""Its own answer, in tokens decoded at the worker's full speed: what a slow worker costs even if it is idle."""
HELD_TOKENS = 64.0
"""The same for each request held there: its share of what is decoded together."""
TYPICAL_PROMPT_TOKENS = 300.0
"""The standing score knows no prompt: it takes this one to hold up those held there."""

PREFILL_SEED = 5.0
"""Prompt tokens/s by decoded tokens/s, until the first is measured: GPUs have 3.5 to 7."""

# Binding late, found by simulation (docs/decisions/0022).
OPEN_S = 0.6
"""`pull`: a worker that was granted so many seconds of prompts, and has not answered them, is closed: it takes no more."""
SLACK = 2.1
"""A request waits for a closed worker that would serve it more than so many times better than all that are open."""
YOUNGER = 0.25
"""Of those that wait the oldest is next; each second of its prompt, at the worker that takes, makes it so much younger."""

BOUND = 1.25
"""`session`: a worker may hold so many times its share of all that is held, before it is passed over."""

_HASH_DIGITS = 13  # 52 bits: exact in a double
_HASH_RANGE = 16.0**_HASH_DIGITS
_PICK_DIGITS = 8


class Strategy(StrEnum):
    """What a model or a request may name."""

    PULL = "pull"
    ROUND_ROBIN = "round_robin"
    WEIGHTED_ROUND_ROBIN = "weighted_round_robin"
    LEAST_CONNECTIONS = "least_connections"
    WEIGHTED_LEAST_CONNECTIONS = "weighted_least_connections"
    LEAST_LOADED = "least_loaded"
    LEAST_LOADED_UTILISATION = "least_loaded_utilisation"
    LEAST_LOADED_WAITING = "least_loaded_waiting"
    POWER_OF_TWO = "power_of_two"
    SESSION = "session"


DEFAULT = Strategy.PULL


def is_pull(name: str) -> bool:
    """Whether a request goes by `pull`: it names it, or none that is known here."""
    return name not in set(Strategy) - {Strategy.PULL}


@dataclass(frozen=True, slots=True)
class Load:
    """What is known of a parked worker. All but the last three is Redis's own, exact and present."""

    worker: str
    limit_tokens: int  # the sum of costs it is willing to hold
    used_tokens: int  # the sum of costs it holds
    held: int  # requests it holds
    slots: int  # requests it is willing to hold
    weight: float  # decoded tokens/s, measured
    prefill_weight: float  # prompt tokens/s, measured
    prefill_tokens: int = 0  # prompts granted there whose first token has not been appended yet
    turns: float = 0.0  # the sum of 1 / weight, as it was then, over what it was granted by turns (`turns`)
    last_granted: int = 0  # the model's count of grants by round robin at its last one
    memory: float = 0.0  # as of the last heartbeat: share of its memory in use,
    utilisation: float = 0.0  # share of the time it computed,
    waiting: int = 0  # requests its engine has not begun


@dataclass(frozen=True, slots=True)
class Need:
    """What is known of a request when it meets the parked pulls. `last_worker` ran the session's last request ("" for none)."""

    prompt_tokens: int
    cost_tokens: int
    session: str = ""
    last_worker: str = ""
    salt: str = ""
    patient: bool = True  # it has not waited for so long that it takes any (QueueRules.patience_ms)


@dataclass(frozen=True, slots=True)
class Share:
    """The sums over the parked pulls that have room: what `session` holds a worker's part against."""

    held: int
    weight: float


def share_of(loads: Sequence[Load]) -> Share:
    """Their sums, added in this order, as Lua adds: a sum of doubles hangs on its order."""
    held, weight = 0, 0.0
    for load in loads:
        held += load.held
        weight += load.weight
    return Share(held, weight)


def has_room(load: Load, cost_tokens: int) -> bool:
    """Whether the pull can hold a request of this cost."""
    return load.held < load.slots and load.limit_tokens - load.used_tokens >= cost_tokens


def is_closed(load: Load) -> bool:
    """`pull`: whether it takes no more until it has said some first tokens. With no prompt to do it takes one, however long; and
    who does not know how fast it prefills is never closed."""
    return load.prefill_weight > 0 and load.prefill_tokens >= OPEN_S * load.prefill_weight


def younger_s(load: Load, prompt_tokens: int) -> float:
    """How many seconds later than it came a request counts as come, where this worker takes of those that wait."""
    return YOUNGER * prompt_tokens / prefill_speed(load)


def connections(load: Load) -> float:
    """Requests it would hold, by speed: weighted least connections."""
    return (load.held + 1) / load.weight


def prefill_speed(load: Load) -> float:
    """Prompt tokens/s; where none was measured yet, reckoned from the decode speed."""
    return load.prefill_weight if load.prefill_weight > 0 else PREFILL_SEED * load.weight


def wait(wait_s: float) -> float:
    """What a wait for the first token weighs, in seconds."""
    return wait_s + WAIT_GROWTH * wait_s * min(wait_s, WAIT_KNEE_S)


def decoding(load: Load) -> float:
    """What an answer takes there, in seconds."""
    return (ANSWER_TOKENS + HELD_TOKENS * (load.held + 1)) / load.weight


def standing(load: Load) -> float:
    """`pull` without the request, in seconds: the score the parked pulls stand in line with (the zset)."""
    speed = prefill_speed(load)
    return wait(load.prefill_tokens / speed) + decoding(load) + load.held * TYPICAL_PROMPT_TOKENS / speed


def pull(load: Load, prompt_tokens: int) -> float:
    """`pull` with the request: until the prompts there and its own are done, its answer, and how long it holds up each other."""
    speed = prefill_speed(load)
    return wait((load.prefill_tokens + prompt_tokens) / speed) + decoding(load) + load.held * prompt_tokens / speed


def reported(report: float, load: Load) -> float:
    """A whole number as reported; among equals weighted least connections, squeezed below 1."""
    x = connections(load)
    return math.floor(report) + x / (1.0 + x)


def affinity(session: str, worker: str) -> float:
    """Rendezvous hashing: the place of a worker for a session, from 0 up to 1."""
    digest = hashlib.sha1((session + worker).encode(), usedforsecurity=False).hexdigest()
    return int(digest[:_HASH_DIGITS], 16) / _HASH_RANGE


def session_bound(load: Load, share: Share) -> int:
    """How many a worker may hold before a session is led past it."""
    return math.ceil(BOUND * (share.held + 1) * load.weight / share.weight)


def session(load: Load, need: Need, share: Share) -> float:
    """-1 for who last ran the session, then by hash; who holds more than its bounded share comes after all others."""
    if load.held + 1 > session_bound(load, share):
        return 2.0 + connections(load)
    if load.worker == need.last_worker:
        return -1.0
    return affinity(need.session, load.worker)


def score(strategy: Strategy, load: Load, need: Need, share: Share) -> float:
    """The score of one parked pull that has room. `power_of_two` compares only the two that `two_picks` names."""
    match strategy:
        case Strategy.PULL:
            return pull(load, need.prompt_tokens)
        case Strategy.ROUND_ROBIN:
            return float(load.last_granted)
        case Strategy.WEIGHTED_ROUND_ROBIN:
            return load.turns + 1 / load.weight
        case Strategy.LEAST_CONNECTIONS:
            return float(load.held)
        case Strategy.LEAST_LOADED:
            return reported(load.memory * 100, load)
        case Strategy.LEAST_LOADED_UTILISATION:
            return reported(load.utilisation * 100, load)
        case Strategy.LEAST_LOADED_WAITING:
            return reported(load.waiting, load)
        case Strategy.SESSION:
            return session(load, need, share)
        case Strategy.WEIGHTED_LEAST_CONNECTIONS | Strategy.POWER_OF_TWO:
            return connections(load)


def two_picks(count: int, salt: str) -> tuple[int, int]:
    """Two different places (if there are two) among `count` pulls with room in the order of their ids, by sha1 of the salt."""
    digest = hashlib.sha1(salt.encode(), usedforsecurity=False).hexdigest()
    first = int(digest[:_PICK_DIGITS], 16) % count
    second = int(digest[_PICK_DIGITS : 2 * _PICK_DIGITS], 16) % count
    return first, second if second != first else (first + 1) % count


def looked_at(strategy: Strategy, parked: Sequence[Load], need: Need) -> list[Load]:
    """Those of the parked pulls that are compared for a request, by id (`pull`: by standing score, then id)."""
    fitting = sorted((load for load in parked if has_room(load, need.cost_tokens)), key=lambda load: load.worker)
    if strategy is Strategy.PULL:
        return sorted((load for load in fitting if not is_closed(load)), key=standing)[:CANDIDATES]
    if strategy is Strategy.POWER_OF_TWO and fitting:
        return [fitting[i] for i in two_picks(len(fitting), need.salt)]
    return fitting


def first_closed(parked: Sequence[Load]) -> list[Load]:
    """The closed that `pull` compares the open with."""
    closed = sorted((load for load in parked if is_closed(load) and has_room(load, 1)), key=lambda load: load.worker)
    return sorted(closed, key=standing)[:CANDIDATES]


def suits(load: Load, need: Need, closed: Sequence[Load]) -> bool:
    """`pull`: whether it may go to this open one: no closed one that has room would serve it so much better."""
    here = pull(load, need.prompt_tokens)
    able = (other for other in closed if has_room(other, need.cost_tokens))
    return not any(here > SLACK * pull(other, need.prompt_tokens) for other in able)


def choose(strategy: Strategy, parked: Sequence[Load], need: Need) -> Load | None:
    """The parked pull that the request meets, or None: no room at any that is open, or it waits for a closed one.

    The scripts choose the same, cheaper. Where more than 64 are parked and few of the first have room, `pull` compares fewer;
    where more than 128 have room, the other strategies compare 128 of them, by chance.
    """
    compared = looked_at(strategy, parked, need)
    if not compared:
        return None
    share = share_of(compared)
    best = min(compared, key=lambda load: (score(strategy, load, need, share), load.worker))
    if strategy is Strategy.PULL and need.patient and not suits(best, need, first_closed(parked)):
        return None
    return best


def turns(had: float, turn: float, weight: float) -> float:
    """`weighted_round_robin`: the turns a worker counts with. `turn`: those of the last to be chosen, before it was: a worker
    that is new or was away is next there, once, or it would take a flood. What it had stays when its weight changes."""
    return max(had, turn - 1 / weight)
