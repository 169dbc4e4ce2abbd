"""The bugs that the harness must find: each an edit of one file, with the faults that bring it to light fastest.

Never here: how they are planted and hunted (mutants.py).
"""

from collections.abc import Collection
from dataclasses import dataclass

_SCRIPTS = "dispatch/scripts/"
_LEAVE, _LOG, _GROUND, _MEET = (f"{_SCRIPTS}lib/{name}.lua" for name in ("leave", "log", "ground", "meet"))
_WORK, _HEART = "worker/execution.py", "worker/heartbeat.py"
_REQUESTS, _READING, _SUBMITTING = "gateway/routes/requests.py", "gateway/reading.py", "gateway/submitting.py"
_LOSSY = "drop-replies,cut,client-kill,one-way"
_ORDER_FENCE = "if leader ~= who or current ~= tonumber(epoch) or ends <= now then return 'fenced' end"
_LEADERLESS = "kill-leader,stop-leader,drain-autoscaler"
_DEADLY = "kill-worker,stop-worker,partition"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug: every `old` in `file` becomes `new`. `only`: the faults of the hunt, "" for all."""

    name: str
    file: str
    old: str
    new: str
    only: str = ""
    expects: Collection[str] = frozenset()
    """The promises that this bug breaks: a violation of another one does not count as having found it."""
    poison: float = 0.01
    """The share of prompts that do something to their engine."""
    scaled: bool = False
    """Whether it shows only where autoscalers and agents are."""


MUTANTS: tuple[Mutant, ...] = (
    # the fence
    Mutant(
        "append without a fence",
        f"{_SCRIPTS}append.lua",
        "if fenced(r, attempt, nonce) or r.state ~= 'running' then return 'fenced' end",
        "if not r then return 'fenced' end",
        expects={"I2", "I4", "I5"},
    ),
    Mutant(
        "append without the nonce",
        f"{_SCRIPTS}append.lua",
        "fenced(r, attempt, nonce)",
        "fenced(r, attempt, r and r.nonce)",
        expects={"I4", "I5"},
    ),
    Mutant(
        "finish without a fence",
        f"{_SCRIPTS}finish.lua",
        "if fenced(r, attempt, nonce) or r.state ~= 'running' then return 'fenced' end",
        "",
        expects={"I2", "I4", "I5"},
    ),
    Mutant(
        "a fence that only knows whether it is held",
        _GROUND,
        " or r.nonce ~= nonce or r.attempt ~= tonumber(attempt)",
        "",
        expects={"I2", "I4", "I5"},
    ),
    Mutant(
        "renew does not look at the fence",
        f"{_SCRIPTS}renew.lua",
        "if fenced(r, attempt, nonce) or r.worker ~= worker then\n    lost[#lost + 1] = id",
        "if not r then\n    lost[#lost + 1] = id",
        expects={"I5"},
    ),
    Mutant(
        "cancel does not fence",
        f"{_SCRIPTS}cancel.lua",
        "room_grew(end_from_outside(r, 'cancelled', 'cancelled', message))",
        "if is_held(r) then stop_worker(r, 'cancelled') end",
        expects={"I8", "I2"},
    ),
    # the log
    Mutant(
        "no check of the seq: a repeated append is written twice",
        f"{_SCRIPTS}append.lua",
        "if seq <= last then",
        "if false then",
        _LOSSY,
        expects={"I3", "I4"},
    ),
    Mutant("the chain is not chained", _LOG, "redis.sha1hex(r.chain .. data)", "redis.sha1hex(data)", expects={"I3"}),
    Mutant("the feed is not told", _LOG, "  tell_readers(r, kind, data, last, last_chain)\nend", "end", expects={"I1"}),
    Mutant(
        "the end is not fed",
        _LOG,
        "  tell_readers(r, kind, data, last, last_chain)\nend",
        "  if kind ~= 'end' then tell_readers(r, kind, data, last, last_chain) end\nend",
        expects={"I1"},
    ),
    # timers and charges
    Mutant(
        "a lease has no timer", _GROUND, "if is_held(r) then at = math.min(at, r.lease) end", "", _DEADLY, expects={"I1", "I11"}
    ),
    Mutant("the sweep charges never", _LEAVE, "r.charged = r.charged + 1", "r.charged = r.charged", _DEADLY, expects={"I6"}),
    Mutant("the sweep charges twice", _LEAVE, "r.charged = r.charged + 1", "r.charged = r.charged + 2", _DEADLY, expects={"I6"}),
    Mutant(
        "no amnesty after Redis was away",
        f"{_SCRIPTS}sweep.lua",
        "if now < amnesty then",
        "if false then",
        "stop-server,kill-server",
        expects={"I9"},
    ),
    # the two lines
    Mutant(
        "a grant leaves its entry in the line",
        f"{_SCRIPTS}lib/line.lua",
        "redis.call('XDEL', k_line(model, priority, part), entry)",
        "local _ = part",
        expects={"I7", "I11"},
    ),
    Mutant("a grant forgets its cost", _MEET, "w.used = w.used + r.cost", "w.used = w.used", expects={"I7"}),
    Mutant("held for ever", _LEAVE, "later('HDEL', k_held(r.worker), r.id)", "local _ = r", expects={"I7", "I11"}),
    Mutant(
        "finish does not look at the line",
        f"{_SCRIPTS}finish.lua",
        "room_grew(end_request(r, state, detail, RETENTION_MS))",
        "end_request(r, state, detail, RETENTION_MS)",
        "script-flush",
        expects={"I1", "I7"},
    ),
    Mutant("one key, several requests", f"{_SCRIPTS}enqueue.lua", "  if first then", "  if false then", expects={"I10"}),
    # the worker
    Mutant(
        "the worker ignores what was said before",
        _WORK,
        "if begun.seq else ()",
        "if begun.seq > 10**9 else ()",
        _DEADLY,
        expects={"I3", "I4"},
    ),
    Mutant(
        "the worker counts from the start again",
        _WORK,
        "self._began, self._seq = True, begun.seq",
        "self._began, self._seq = True, 0",
        _DEADLY,
        expects={"I1", "I4"},
    ),
    Mutant(
        "the worker drops the last chunk",
        _WORK,
        "last = self._gathered.take()",
        'last, _ = b"", self._gathered.take()',
        expects={"I4"},
    ),
    Mutant(
        "the worker does not repeat an append whose reply was lost",
        _WORK,
        "        status = await self._call(lambda: self._queue.append(self.grant, self._seq + 1, data))\n",
        "        try:\n            status = await self._queue.append(self.grant, self._seq + 1, data)\n"
        "        except STORE_FAULT:\n            return WriteStatus.OK\n",
        _LOSSY,
        expects={"I4"},
    ),
    Mutant(
        "the worker does not renew",
        _HEART,
        "self._renew() if pace is not Pace.HUNG else _nothing()",
        "_nothing()",
        "script-flush",
        expects={"I9"},
    ),
    Mutant(
        "a drained worker gives nothing back",
        _WORK,
        "await self._call(lambda: self._queue.release(self.grant))\n                case",
        "pass\n                case",
        "drain-worker",
        expects={"I9"},
    ),
    # the gateway
    Mutant(
        "resume is off by one",
        "gateway/native_events.py",
        "    seq = int(match.group(1))\n",
        "    seq = max(int(match.group(1)) - 1, 0)\n",
        expects={"I3"},
    ),
    Mutant(
        "resume skips one",
        f"{_SCRIPTS}attach.lua",
        "k_output(id), after, -1)",
        "k_output(id), after + (after > 0 and 1 or 0), -1)",
        expects={"I3"},
    ),
    Mutant("Last-Event-ID is ignored", _REQUESTS, ' or http_request.headers.get("last-event-id")', "", expects={"I3"}),
    Mutant(
        "what the feed brings is not held against what is there",
        _READING,
        "        if entry.seq <= self.seq:\n"
        "            if entry.seq == self.seq and entry.chain != self.chain:\n"
        "                self.doubt()\n            return\n"
        "        if entry.seq != self.seq + 1:\n            self.doubt()\n            return\n",
        "",
        "cut,client-kill,drop-replies",
        expects={"I3"},
    ),
    Mutant(
        "idempotency keys are ignored",
        "gateway/admission.py",
        'key = headers.get("idempotency-key", "")',
        'key = ""',
        expects={"I10"},
    ),
    Mutant(
        "a repeated enqueue has a new id",
        _SUBMITTING,
        "            await asyncio.sleep(_RETRY_S)\n    if done.status is EnqueueStatus.FULL",
        "            from dispatch.messages import new_id\n"
        "            new = msgspec.structs.replace(new, id=new_id(gateway.queue.shard))\n"
        "    if done.status is EnqueueStatus.FULL",
        "drop-replies,cut,client-kill",
        expects={"I10"},
    ),
    Mutant(
        "DELETE does nothing",
        _REQUESTS,
        "if await gateway.queue.cancel(request_id) is None:",
        "if await gateway.queue.record(request_id) is None:",
        expects={"I8"},
    ),
    Mutant("nobody sweeps", "gateway/app.py", "await queue.sweep()", "pass", _DEADLY, expects={"I1"}),
    # engines, readers, launchers
    Mutant(
        "a killed worker is the fault of what it ran",
        "autoscaler/launchers/aftermath.py",
        "if -end.code in OWN_FAULT else ()",
        "if end.code < 0 else ()",
        "kill-worker",
        expects={"I9"},
    ),
    Mutant(
        "what a dead worker held goes back uncharged",
        f"{_SCRIPTS}abandon.lua",
        "if r.state == 'granted' then",
        "if true then",
        "kill-worker",
        expects={"I6"},
    ),
    Mutant(
        "orphans are never looked for",
        f"{_SCRIPTS}sweep.lua",
        "if r.on_disconnect == 'cancel' and",
        "if r.on_disconnect == 'never' and",
        "script-flush",
        expects={"J3"},
        poison=0.05,
    ),
    Mutant(
        "an engine that talks nonsense works on",
        "worker/health.py",
        "if said != self._expected:\n            return",
        "if False:\n            return",
        "script-flush",
        expects={"J4"},
        poison=0.1,
    ),
    # what scales itself
    Mutant("orders without a fence", f"{_SCRIPTS}order.lua", _ORDER_FENCE, "", _LEADERLESS, {"S1"}, scaled=True),
    Mutant(
        "a new leader has no new epoch",
        f"{_SCRIPTS}lead.lua",
        "if ends <= now then epoch =",
        "if epoch == 0 then epoch =",
        _LEADERLESS,
        {"S1"},
        scaled=True,
    ),
    Mutant(
        "an agent does not find its workers again",
        "autoscaler/agent/agent.py",
        "running = workers_of(self.host)",
        "running, state = {}, type(state)(self.host)",
        "kill-agent",
        {"S2", "S3", "S5"},
        scaled=True,
    ),
    Mutant(
        "--stop-workers ends nobody",
        "autoscaler/agent/serve.py",
        "await agent.stop_workers()",
        "pass",
        "bounds",
        {"S3"},
        scaled=True,
    ),
    Mutant(
        "who drains is ended before it is done",
        "autoscaler/arrange.py",
        "ended = {name for name in retiring if _has_nothing_left(seen.get(name))}",
        "ended = set(retiring)",
        "bounds",
        {"S4"},
        scaled=True,
    ),
)
