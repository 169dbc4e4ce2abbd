"""What must be true of the keys in Redis after every script, whatever happened before: nothing here knows the history."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from dispatch.records import plain_fields
from dispatch.rules import QueueRules
from dispatch.scores import Load, Need, is_closed, is_pull, standing, suits
from dispatch.states import ENDINGS, HELD, Priority
from tests.key_leaks import PERMANENT

_TAG = "{s0}:"
_READ = {
    "request": ("HGETALL",),
    "worker": ("HGETALL",),
    "held": ("HGETALL",),
    "prefill": ("HGETALL",),
    "stats": ("HGETALL",),
    "output": ("LRANGE", "0", "-1"),
    "queue": ("XRANGE", "-", "+"),
    "inbox": ("XRANGE", "-", "+"),
    "dead": ("XRANGE", "-", "+"),
    "sizes": ("ZRANGE", "0", "-1", "WITHSCORES"),
    "parked": ("ZRANGE", "0", "-1", "WITHSCORES"),
    "shut": ("ZRANGE", "0", "-1", "WITHSCORES"),
    "rooms": ("ZRANGE", "0", "-1", "WITHSCORES"),
    "others": ("ZRANGE", "0", "-1", "WITHSCORES"),
    "requests": ("ZRANGE", "0", "-1"),
    "expiries": ("ZRANGE", "0", "-1"),
    "timers": ("ZRANGE", "0", "-1", "WITHSCORES"),
    "leases": ("SMEMBERS",),
    "pins": ("SMEMBERS",),
    "paused": ("SMEMBERS",),
    "outbox": ("ZRANGE", "0", "-1", "WITHSCORES"),
    "webhook": ("HGETALL",),
    "tombstone": ("GET",),
    "input": ("STRLEN",),
}


_UNSAID = {"attempt": "0", "seq": "0", "charged": "0", "crashes": "0", "webhook_events": "", "reader_look": "0", "readers": ""}
"""What a record says only once it is so."""


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    return value


@dataclass
class Snapshot:
    """All keys of shard s0 at one moment: `of[area][name] = value`, and each key's time to live."""

    of: dict[str, dict[str, Any]] = field(default_factory=lambda: {area: {} for area in _READ})
    pttl: dict[str, int] = field(default_factory=dict)
    begun: set[tuple[str, str]] | None = None
    """Worker and inbox entry of each grant that began, ever; None where nobody watched."""

    def one(self, area: str) -> Any:
        return self.of[area].get("", [])

    @property
    def states(self) -> dict[str, str]:
        return {i: r["state"] for i, r in self.of["request"].items()}


async def snapshot(redis: Redis) -> Snapshot:
    found = Snapshot()
    names = sorted(n.decode() for n in await redis.keys("*"))
    pipe = redis.pipeline(transaction=False)
    read = []
    for name in names:
        pipe.pttl(name)
        area, _, rest = name.removeprefix(_TAG).partition(":")
        if name.startswith(_TAG) and area in _READ:
            read.append((area, rest))
            pipe.execute_command(_READ[area][0], name, *_READ[area][1:])
        else:
            read.append(("", name))
    replies = iter(await pipe.execute())
    for name, (area, rest) in zip(names, read, strict=True):
        found.pttl[name] = next(replies)
        if area:
            value = _plain(next(replies))
            if area == "request" and isinstance(value, dict):
                stored = {k.encode(errors="surrogateescape"): v.encode(errors="surrogateescape") for k, v in value.items()}
                value = _UNSAID | {"chain": chain_start(rest)} | plain_fields(stored)
            found.of[area][rest] = list(zip(value[::2], value[1::2], strict=True)) if "WITHSCORES" in _READ[area] else value
    return found


def _next_look(r: dict[str, str]) -> int:
    at = int(r["deadline"])
    if r["state"] in HELD:
        at = min(at, int(r["lease"]))
    if r["state"] == "waiting":
        at = min(at, int(r["not_before"]))
    if r["on_disconnect"] == "cancel" and int(r["reader_look"]) > 0:
        at = min(at, int(r["reader_look"]))
    return at


def chain_of(request: str, datas: list[bytes], version: str = "2") -> list[str]:
    chain, chains = chain_start(request, version), []
    for data in datas:
        chain = hashlib.sha1(chain.encode() + data).hexdigest()[:16]
        chains.append(chain)
    return chains


def _lines(s: Snapshot) -> list[str]:
    wrong, stood = [], {}
    for name in s.of["queue"].keys() | s.of["sizes"].keys():
        entries = {entry: (f["id"], float(f["cost"])) for entry, f in s.of["queue"].get(name, [])}
        sizes = {entry: float(size) for entry, size in s.of["sizes"].get(name, [])}
        if sizes != {entry: cost for entry, (_, cost) in entries.items()}:
            wrong.append(f"sizes of line {name} are {sizes}, its entries {entries}")
        for entry, (request, cost) in entries.items():
            if request in stood:
                wrong.append(f"{request} stands in line twice")
            stood[request] = (name, entry, cost)
    queued = {
        i: (f"{r['model']}:{r['priority']}{r['part']}", r["entry"], float(r["cost"]))
        for i, r in s.of["request"].items()
        if r["state"] == "queued"
    }
    if stood != queued:
        wrong.append(f"the line holds {stood}, queued are {queued}")
    return wrong


def _was_read(s: Snapshot, worker: str, entry: str) -> bool:
    """Whether that worker began what came behind an entry of its inbox: so it has read it, and it is forgotten with that one."""
    begun = s.begun
    if begun is None:  # nobody watched: whatever it was granted once and holds no more may have begun
        begun = {(r["worker"], r["inbox"]) for r in s.of["request"].values() if r.get("worker") and r["state"] != "granted"}
    return any(_stream_id(entry) < _stream_id(other) for begun_by, other in begun if begun_by == worker)


def _stream_id(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-")))


def _workers(s: Snapshot) -> list[str]:
    wrong = []
    held_now = {i: r for i, r in s.of["request"].items() if r["state"] in HELD}
    for worker in s.of["worker"].keys() | s.of["held"].keys() | {r["worker"] for r in held_now.values()}:
        w, held = s.of["worker"].get(worker, {}), s.of["held"].get(worker, {})
        leases = {i: r["cost"] for i, r in held_now.items() if r["worker"] == worker}
        if held != leases:
            wrong.append(f"{worker} is said to hold {held}, its leases are {leases}")
        prefill = s.of["prefill"].get(worker, {})
        waits = {i: r["prompt"] for i, r in held_now.items() if r["worker"] == worker and int(r.get("prefilling", 0))}
        if prefill != waits:
            wrong.append(f"{worker} is said to prefill {prefill}, of what it holds {waits} has no output yet")
        if "prefill" in w and int(w["prefill"]) != sum(map(int, prefill.values())):
            wrong.append(f"{worker} counts prefill {w['prefill']}, has to prefill {prefill}")
        if "used" in w and (int(w["used"]), int(w["held"])) != (sum(map(int, held.values())), len(held)):
            wrong.append(f"{worker} counts used {w['used']} held {w['held']}, holds {held}")
        grants = {tuple(f["grant"].split()[:3]) for _, f in s.of["inbox"].get(worker, []) if "grant" in f}
        granted = {
            (i, r["attempt"], r["nonce"]) for i, r in held_now.items() if r["worker"] == worker and r["state"] == "granted"
        }
        missing = {i for i, attempt, nonce in granted - grants if not _was_read(s, worker, held_now[i]["inbox"])}
        if grants - granted or missing:
            wrong.append(f"the inbox of {worker} brings {grants}, granted to it are {granted}")
    for name, members in s.of["leases"].items():
        if set(members) != {i for i, r in held_now.items() if r["model"] == name}:
            wrong.append(f"leases of {name} are {members}, held are {sorted(held_now)}")
    if held_now and not s.of["leases"]:
        wrong.append("no set of leases")
    return wrong


def _room(w: dict[str, str], held: dict[str, str]) -> int:
    if w.get("alone") or len(held) + bool(w.get("pin")) >= int(w["slots"]):
        return 0
    return int(w["limit"]) - sum(map(int, held.values())) - int(w.get("pin_cost") or 0)


def _load(w: dict[str, str], held: dict[str, str]) -> Load:
    room, slots = _room(w, held), int(w["slots"])
    return Load("", room, 0, len(held), slots, float(w["weight"]), float(w["prefill_weight"]), int(w["prefill"]))


def _standing(w: dict[str, str], held: dict[str, str]) -> float:
    return standing(_load(w, held))


def _pins(s: Snapshot) -> list[str]:
    """Who keeps room keeps it for a cost that stands, and is known to."""
    wrong = []
    keepers = {name: w["pin"] for name, w in s.of["worker"].items() if w.get("pin")}
    named = {worker for members in s.of["pins"].values() for worker in members}
    if named != set(keepers):
        wrong.append(f"the list of pins names {named}, pins have {keepers}")
    for worker, request in keepers.items():
        if s.of["worker"][worker]["pin_cost"] != s.of["request"][request]["cost"]:
            wrong.append(f"{worker} keeps room of a wrong size for {request}")
    for request, r in s.of["request"].items():
        if r.get("pinned") and r["state"] in HELD:
            wrong.append(f"{request} is held and still pinned")
    return wrong


def _has_place(s: Snapshot, request: str, r: dict[str, str]) -> bool:
    kept = s.of["worker"].get(r.get("reserved", ""), {})
    return kept.get("alone") == request


def _alone(s: Snapshot) -> list[str]:
    """A suspect runs with nothing beside it."""
    wrong = []
    for worker, held in s.of["held"].items():
        suspects = [i for i in held if int(s.of["request"][i]["crashes"])]
        if suspects and len(held) > 1:
            wrong.append(f"{worker} runs {sorted(held)}, of which {suspects} must run alone")
    return wrong


def _parked(s: Snapshot) -> list[str]:
    wrong = []
    rooms = {(model, worker): float(left) for model, all_ in s.of["rooms"].items() for worker, left in all_}
    derived = {
        (model, worker): float(_room(s.of["worker"].get(worker, {}), s.of["held"].get(worker, {})))
        for which in ("parked", "shut")
        for model, parked in s.of[which].items()
        for worker, _ in parked
        if s.of["worker"].get(worker)
    }
    if rooms != derived:
        wrong.append(f"rooms of the parked and the closed are {rooms}, must be {derived}")
    for model, parked in s.of["parked"].items():
        for worker, score in parked:
            w, held = s.of["worker"].get(worker, {}), s.of["held"].get(worker, {})
            if not w or w.get("barred") or w["accepting"] != "1":
                wrong.append(f"{worker} is parked and must not be: {w}")
                continue
            if abs(float(score) - _standing(w, held)) > 1e-9:
                wrong.append(f"{worker} is parked with score {score}, it is {_standing(w, held)}")
            if _room(w, held) <= 0:
                wrong.append(f"{worker} is parked and has no room")
            if is_closed(_load(w, held)):
                wrong.append(f"{worker} is parked and has too much to prefill to take more")
            for request, r in s.of["request"].items():
                may_meet = model not in s.one("paused") and r["model"] == model and r["state"] == "queued"
                if may_meet and int(r["crashes"]) and int(r["cost"]) <= int(w["limit"]) and not _has_place(s, request, r):
                    wrong.append(f"the suspect {request} waits, no worker is kept free for it, and {worker} is parked")
                fits = not int(r["crashes"]) and int(r["cost"]) <= _room(w, held)
                if may_meet and fits and not _waits_for_better(s, model, r, _load(w, held)):
                    wrong.append(f"{request} waits and {worker} is parked with room for it: they were left unmet")
    return wrong


def _waits_for_better(s: Snapshot, model: str, r: dict[str, str], load: Load) -> bool:
    """Whether a closed worker would serve it so much better than this open one that it waits."""
    shut = [worker for worker, _ in s.of["shut"].get(model, []) if s.of["worker"].get(worker)]
    closed = [_load(s.of["worker"][worker], s.of["held"].get(worker, {})) for worker in shut]
    return is_pull(r["strategy"]) and not suits(load, Need(int(r["prompt"]), int(r["cost"])), closed)


def _shut(s: Snapshot) -> list[str]:
    """Who is closed has room, and too much to prefill to take more."""
    wrong = []
    for model, closed in s.of["shut"].items():
        parked = {worker for worker, _ in s.of["parked"].get(model, [])}
        for worker, score in closed:
            w, held = s.of["worker"].get(worker, {}), s.of["held"].get(worker, {})
            if not w or w.get("barred") or w["accepting"] != "1" or worker in parked:
                wrong.append(f"{worker} is said to be closed and must not be: {w}, parked {parked}")
            elif not is_closed(_load(w, held)) or _room(w, held) <= 0:
                wrong.append(f"{worker} is said to be closed, and is open or has no room")
            elif abs(float(score) - _standing(w, held)) > 1e-9:
                wrong.append(f"{worker} is closed with score {score}, it is {_standing(w, held)}")
            for request, r in s.of["request"].items():
                may_meet = (
                    model not in s.one("paused") and r["model"] == model and r["state"] == "queued" and not int(r["crashes"])
                )
                if w and may_meet and not is_pull(r["strategy"]) and int(r["cost"]) <= _room(w, held):
                    wrong.append(f"{request} waits by {r['strategy']} and {worker} has room for it: they were left unmet")
    return wrong


def _others(s: Snapshot) -> list[str]:
    """Who waits by another strategy than `pull`, and is no suspect, is known to."""
    listed = {(model, member, float(cost)) for model, all_ in s.of["others"].items() for member, cost in all_}
    waiting = {
        (r["model"], f"{r['priority']}{r['part']} {r['entry']}", float(r["cost"]))
        for r in s.of["request"].values()
        if r["state"] == "queued" and r["part"] != ":alone" and not is_pull(r["strategy"])
    }
    return [] if listed == waiting else [f"waiting by other strategies are said to be {listed}, are {waiting}"]


def _timers(s: Snapshot) -> list[str]:
    timers = {i: int(float(at)) for i, at in s.one("timers")}
    expected = {i: _next_look(r) for i, r in s.of["request"].items() if r["state"] not in ENDINGS}
    return [] if timers == expected else [f"timers are {timers}, must be {expected}"]


def _logs(s: Snapshot) -> list[str]:
    wrong = []
    for request, r in s.of["request"].items():
        entries = log_of(s.of["output"].get(request, []))
        numbers = [(seq, attempt) for seq, attempt, *_ in entries]
        if [n for n, _ in numbers] != list(range(1, len(numbers) + 1)) or len(numbers) != int(r["seq"]):
            wrong.append(f"the log of {request} is not dense: {numbers}, seq {r['seq']}")
        attempts = [a for _, a in numbers]
        if attempts != sorted(attempts) or (attempts and attempts[-1] > int(r["attempt"])):
            wrong.append(f"attempts in the log of {request} go back: {numbers}")
        start = chain_start(request, r["v"])
        chains = chain_of(request, [data.encode(errors="surrogateescape") for *_, data, _ in entries], r["v"])
        if [chain for *_, chain in entries] != chains or r["chain"] != (chains or [start])[-1]:
            wrong.append(f"the chain of {request} is broken")
        kinds = [kind for _, _, kind, *_ in entries]
        ended = r["state"] in ENDINGS
        if kinds.count("end") != ended or (ended and kinds[-1] != "end"):
            wrong.append(f"{request} is {r['state']}, its log is {kinds}")
        if ended and entries and kinds[-1] == "end":
            said = json.loads(entries[-1][3])
            if said["state"] != r["state"] or said["attempts"] != int(r["attempt"]):
                wrong.append(f"{request} is {r['state']} after {r['attempt']} attempts, its end says {said}")
    return wrong


def chain_start(request: str, version: str = "2") -> str:
    return hashlib.sha1(request.encode()).hexdigest()[:16] if version == "1" else request[-16:]


def log_of(elements: list[str]) -> list[tuple[int, int, str, str, str]]:
    """seq, attempt, kind, data, chain of all that is told."""
    log = []
    for seq, element in enumerate(elements, 1):
        attempt, kind, chain, data = element.split(" ", 3)
        log.append((seq, int(attempt), kind, data, chain))
    return log


def _kept(s: Snapshot, rules: QueueRules) -> list[str]:
    wrong = [f"{name} will never be removed" for name, ttl in s.pttl.items() if ttl == -1 and not PERMANENT.fullmatch(name)]
    dead = {f["id"] for _, f in s.one("dead")}
    unfinished = {request for request, r in s.of["request"].items() if r["state"] not in ENDINGS}
    # What goes on is not to be forgotten yet; the sweep that misses its record takes it off the list.
    if set(s.one("requests")) != set(s.one("expiries")) | unfinished or set(s.one("expiries")) & unfinished:
        wrong.append(f"the list holds {s.one('requests')}, to be forgotten are {s.one('expiries')}")
    for request, r in s.of["request"].items():
        ended = r["state"] in ENDINGS
        if (request in s.of["input"]) == (r["state"] == "completed"):
            wrong.append(f"{request} is {r['state']}, its input is {'kept' if request in s.of['input'] else 'gone'}")
        if s.of["tombstone"].get(request) != (f"{r['state']} {r['tenant']}" if ended else None):
            wrong.append(f"{request} is {r['state']}, its tombstone says {s.of['tombstone'].get(request)}")
        if (request in dead) != (r.get("dead") == "1"):
            wrong.append(f"{request} and the list of dead letters disagree")
        if ended:
            keep = rules.dead_ms if request in dead else rules.retention_ms
            for area in ("request", "output", "input"):
                if s.pttl.get(f"{_TAG}{area}:{request}", 0) > keep:
                    wrong.append(f"the {area} of {request} is kept too long")
    return wrong


def _outbox(s: Snapshot) -> list[str]:
    """Each ending that was asked for has its one webhook, and what is owed is in the outbox."""
    wrong = []
    ended = {
        i: r["state"]
        for i, r in s.of["request"].items()
        if r["state"] in ENDINGS and r.get("webhook") and r["state"] in (r["webhook_events"] or r["state"]).split()
    }
    told = {i: w["ending"] for i, w in s.of["webhook"].items()}
    if ended != told:
        wrong.append(f"endings that were asked for are {ended}, webhooks there are {told}")
    owed = {i for i, w in s.of["webhook"].items() if w["state"] == "owed"}
    if {i for i, _ in s.one("outbox")} != owed:
        wrong.append(f"the outbox holds {s.one('outbox')}, owed are {owed}")
    return wrong


def broken(s: Snapshot, rules: QueueRules) -> list[str]:
    """Every invariant that does not hold, in words."""
    return [
        *_lines(s),
        *_workers(s),
        *_alone(s),
        *_pins(s),
        *_parked(s),
        *_shut(s),
        *_others(s),
        *_timers(s),
        *_logs(s),
        *_kept(s, rules),
        *_outbox(s),
    ]


def line_order(s: Snapshot, model: str) -> list[str]:
    """Who waits, in the order in which they are looked at."""
    names = [f"{model}:{priority}{part}" for priority in Priority for part in (":alone", ":front", "")]
    return [f["id"] for name in names for _, f in s.of["queue"].get(name, [])]
