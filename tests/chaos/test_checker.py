"""Each promise's function passes a good history and catches a bad one, made by hand."""

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from chaos.checker import check
from chaos.evidence import Evidence
from chaos.history import History
from chaos.invariants import INVARIANTS, Violation
from tests.chaos import scaled_histories

Event = dict[str, Any]
ID, ASK, GATEWAY = "s0.00ff", "sim|text|2||Tell me", "http://g0"
T0 = 1_000_000.0


def _log(*entries: tuple[int, str, dict[str, Any]], request: str = ID) -> list[list[Any]]:
    chain = request[-16:]
    log = []
    for seq, (attempt, kind, data) in enumerate(entries, 1):
        text = json.dumps(data)
        chain = hashlib.sha1((chain + text).encode()).hexdigest()[:16]
        log.append([seq, attempt, kind, text, chain])
    return log


END = {"state": "completed", "attempts": 2, "finish_reason": "length", "usage": {"completion_tokens": 2}}
LOG = _log((1, "chunk", {"text": " a", "tokens": [1]}), (2, "chunk", {"text": " b", "tokens": [2]}), (2, "end", END))


LAPSE = "worker w-0 was not heard of for a whole lease"
STORY = [1, "w-0", T0, T0 + 10, T0 + 2_400, LAPSE]


def _final(**changes: Any) -> Event:
    final = {
        "t": T0 + 30_000, "ev": "final", "id": ID, "model": "sim", "state": "completed", "ended": True, "priority": "normal",
        "attempt": 2, "charged": 1, "crashes": 0, "max_attempts": 10, "cost": 30, "seq": 3, "chain": LOG[-1][4],
        "created_at": T0, "begun_at": T0 + 10, "deadline_at": T0 + 240_000, "ended_at": T0 + 5_000, "retry_of": "", "log": LOG,
        "worker": "w-1", "granted_at": T0 + 2_500, "attempt_begun_at": T0 + 2_510, "story": [STORY],
    }  # fmt: skip
    return {**final, **changes}


def _heard(**changes: Any) -> Event:
    events = [[T0 + 100 * seq, seq, chain, kind, data] for seq, _, kind, data, chain in LOG]
    heard = {
        "t": T0 + 5_100, "ev": "heard", "client": "c0", "id": ID, "face": "native", "gateway": GATEWAY, "from_id": "",
        "started": T0, "events": events, "how": "end", "status": 200, "code": "",
    }  # fmt: skip
    return {**heard, **changes}


def _sample(**changes: Any) -> Event:
    sample = {
        "t": T0,
        "ev": "sample",
        "worker": "w",
        "pid": 7,
        "state": "ready",
        "used": 10,
        "limit": 100,
        "held": 1,
        "slots": 4,
        "missed": False,
    }
    return {**sample, **changes}


GOOD: list[Event] = [
    {"t": T0 - 9_000, "ev": "meta", "topology": "single", "lease_s": 2.0, "gateways": {GATEWAY: "gateway-0"}},
    {"t": T0 - 9_000, "ev": "process", "role": "sim-0", "what": "start", "pid": 7},
    {"t": T0 - 9_000, "ev": "workers", "role": "sim-0", "ids": ["w-0"]},
    {"t": T0 - 9_000, "ev": "workers", "role": "sim-1", "ids": ["w-1"]},
    {"t": T0 - 1, "ev": "reference", "ask": ASK, "text": " a b", "tokens": 2, "finish_reason": "length"},
    {"t": T0 - 1, "ev": "submit", "n": "c0-1", "client": "c0", "key": "k", "ask": ASK, "poison": ""},
    {"t": T0, "ev": "answer", "n": "c0-1", "client": "c0", "status": 202, "id": ID, "key": "k", "code": "", "gateway": GATEWAY},
    {"t": T0 + 150, "ev": "fault", "n": 0, "name": "kill-worker", "phase": "do", "target": "sim-0", "for_s": 0},
    {"t": T0 + 150, "ev": "fault", "n": 0, "name": "kill-worker", "phase": "undone", "target": "sim-0"},
    {"t": T0 + 151, "ev": "victims", "role": "sim-0", "workers": ["w-0"], "cause": "SIGKILL", "requests": [[ID, 1, 1]]},
    {"t": T0 + 155, "ev": "process", "role": "sim-0", "what": "exit", "pid": 7, "code": -9, "told": True},
    _heard(),
    {"t": T0 + 4_000, "ev": "forged", "id": ID, "what": "append", "answer": "fenced"},
    {"t": T0 + 5_200, "ev": "seen", "client": "c0", "id": ID, "gateway": GATEWAY, "status": 200, "state": "completed"},
    {"t": T0 + 5_300, "ev": "result", "client": "c0", "id": ID, "status": 200, "state": "completed", "text": " a b"},
    {"t": T0 + 5_400, "ev": "cancel", "client": "c0", "id": ID, "status": 200, "state": "completed"},
    _sample(),
    {"t": T0 + 20_000, "ev": "phase", "what": "healed", "settled": True, "clients_left": 0},
    _final(),
    {
        "t": T0 + 31_000, "ev": "structure", "timers": [], "leases": {"sim": []}, "lines": {}, "held": {"w": []}, "working": {},
        "leaks": [],
    },
]  # fmt: skip


ANSWER = next(e for e in GOOD if e["ev"] == "answer")
SEEN = next(e for e in GOOD if e["ev"] == "seen")


def _without(history: list[Event], **fields: Any) -> list[Event]:
    return [e for e in history if any(e.get(k) != v for k, v in fields.items())]


def _changed(ev: str, **changes: Any) -> list[Event]:
    return [{**e, **changes} if e["ev"] == ev else e for e in GOOD]


def _stopped(history: list[Event]) -> list[Event]:
    """The same, but its worker was stopped for a moment, not killed."""
    changes = {"fault": {"name": "stop-worker"}, "victims": {"cause": "SIGSTOP"}}
    return [{**e, **changes.get(e["ev"], {})} for e in history]


def _with(*more: Event) -> list[Event]:
    return [*GOOD, *more]


def _other(ended_at: float = T0 + 9_000, **changes: Any) -> Event:
    """A second request, of one attempt, that nobody read."""
    request = changes.get("id", "s0.11ff")
    log = _log((1, "chunk", {"text": " a b", "tokens": [1, 2]}), (1, "end", END), request=request)
    good = _final(id=request, attempt=1, charged=0, log=log, seq=2, chain=log[-1][4], ended_at=ended_at, story=[])
    return {**good, **changes}


def _told(**changes: Any) -> list[Event]:
    """A second request with the submit and answer that go with it."""
    other = _other(**changes)
    submit = {"t": T0 - 1, "ev": "submit", "n": "c1-1", "client": "c1", "key": "", "ask": ASK, "poison": ""}
    answer = {**ANSWER, "n": "c1-1", "id": other["id"], "key": ""}
    return _with(submit, answer, other)


def _fault(name: str, target: str, t: float) -> Event:
    return {"t": t, "ev": "fault", "n": f"{name} {t}", "name": name, "phase": "do", "target": target, "for_s": 0}


def _with_prompt(tag: str, *, worker: str, fault: str, crashes: int = 0) -> list[Event]:
    """A prompt that does something to the engine of a worker, beside the first attempt; the kill struck some role."""
    ask = f"sim|text|24||[[{tag}]] the sea"
    log = _log((1, "chunk", {"text": " a b", "tokens": [1, 2]}), (1, "end", END), request="s0.77ff")
    prompted = _final(
        id="s0.77ff", worker=worker, attempt=1, charged=0, granted_at=T0, attempt_begun_at=T0 + 5, ended_at=T0 + 200, story=[],
        log=log, seq=2, chain=log[-1][4],
    )  # fmt: skip
    struck = [{**e, "target": fault} if e["ev"] == "fault" else e for e in _changed("final", crashes=crashes)]
    submit = {"t": T0 - 1, "ev": "submit", "n": "c7-1", "client": "c7", "key": "", "ask": ask, "poison": tag}
    reference = {"t": T0 - 1, "ev": "reference", "ask": ask, "text": " a b", "tokens": 2, "finish_reason": "length"}
    return [*struck, submit, reference, {**ANSWER, "n": "c7-1", "id": "s0.77ff", "key": ""}, prompted]


def _orphan(how: str, ended_at: float) -> list[Event]:
    """An OpenAI request whose client was gone after a second."""
    heard = _heard(id="s0.88ff", face="openai", how=how, t=T0 + 1_000, events=[[T0 + 900, 0, "", "chunk", " a"]])
    log = _log((1, "chunk", {"text": " a", "tokens": [1]}), (1, "end", {"state": "cancelled"}), request="s0.88ff")
    final = _final(id="s0.88ff", state="cancelled", attempt=1, charged=0, story=[], log=log, seq=2, chain=log[-1][4])
    submit = {"t": T0 - 1, "ev": "submit", "n": "c8-1", "client": "c8", "key": "", "ask": ASK, "poison": ""}
    return [submit, {**ANSWER, "n": "c8-1", "id": "s0.88ff", "key": ""}, heard, {**final, "ended_at": ended_at}]


def _structure(**changes: Any) -> list[Event]:
    return _changed("structure", **changes)


FAILED = {"state": "failed", "attempts": 2, "error": {"code": "engine_error"}}
FAILED_LOG = _log((1, "chunk", {"text": " a", "tokens": [1]}), (2, "end", FAILED))
SEVERAL_ENDS = _log((1, "chunk", {"text": " a", "tokens": [1]}), (2, "end", END), (2, "end", END))
WRONG = _log((1, "chunk", {"text": " a", "tokens": [1]}), (2, "chunk", {"text": " X", "tokens": [2]}), (2, "end", END))
TOKENLESS = _log((1, "chunk", {"text": " a", "tokens": [1]}), (2, "chunk", {"text": " b", "tokens": []}), (2, "end", END))
EVENTS = _heard()["events"]
START = {"t": T0 - 9_000, "ev": "process", "role": "sim-0", "what": "start", "pid": 7}
EXIT = {"t": T0 + 155, "ev": "process", "role": "sim-0", "what": "exit", "pid": 7, "code": -9, "told": True}
PROBED = {"t": T0 + 21_000, "ev": "probed", "worker": "w-0", "ok": True, "state": "ready"}
OPENAI = {"face": "openai", "events": [[T0, 0, "", "chunk", " a"]], "how": "left"}

# the function's name -> histories that it must catch
BAD: dict[str, list[list[Event]]] = {
    "i1_every_request_ends": [
        _without(GOOD, ev="final"),
        _changed("final", ended=False, state="running"),
        _changed("final", ended_at=T0 + 300_000),
        _changed("final", state="expired"),
        _changed("phase", settled=False),
        _changed("phase", clients_left=1),
    ],
    "i2_endings_absorb": [
        _changed("seen", state="cancelled"),
        _changed("result", state="failed"),
        _with({**SEEN, "t": T0 + 40_000, "state": "running"}),
        _changed("final", log=SEVERAL_ENDS),
        _changed("final", log=LOG[:-1]),
        _changed("final", log=FAILED_LOG),
    ],
    "i3_logs_are_chained": [
        _changed("final", log=[LOG[0], LOG[2]]),
        _changed("final", log=[[1, 2, *LOG[0][2:]], [2, 1, *LOG[1][2:]], LOG[2]]),
        _changed("final", log=[LOG[0], [*LOG[1][:3], '{"text":" c"}', LOG[1][4]], LOG[2]]),
        _changed("final", seq=2),
        _changed("final", attempt=1),
    ],
    "i3_clients_heard_the_log": [
        _changed("heard", events=[EVENTS[0], EVENTS[2]]),
        _changed("heard", events=[EVENTS[0], EVENTS[0], EVENTS[1]]),
        _changed("heard", from_id=f"1-{LOG[0][4]}"),
        _changed("heard", events=[[*EVENTS[0][:4], '{"text":" X"}']]),
        _changed("heard", events=[], how="status", status=204),
    ],
    "i4_texts_are_right": [
        _changed("final", log=WRONG),
        _changed("final", log=TOKENLESS),
        _changed("final", state="cancelled", log=WRONG),
        _changed("reference", finish_reason="stop"),
        _changed("result", text=" a"),
        _with(_heard(**{**OPENAI, "how": "end"})),
        _with(_heard(**{**OPENAI, "events": [[T0, 0, "", "chunk", " b"]]})),
    ],
    "i5_the_fence_holds": [_changed("forged", answer="ok"), _changed("forged", answer="gap"), _changed("forged", answer="dup")],
    "i6_attempts_are_bounded": [_changed("final", charged=3), _changed("final", charged=2)],
    "i6_deaths_are_charged": [_changed("final", charged=0)],
    "i6_failures_have_a_cause": [_changed("final", state="failed", log=FAILED_LOG)],
    "i7_memory_is_kept": [_changed("sample", held=5), _changed("sample", used=101, held=2)],
    "i7_two_lines_meet": [_with(*[_sample(missed=True)] * 4)],
    "i8_cancel_is_final": [
        _changed("cancel", state="running"),
        _changed("cancel", state="cancelled"),
        _changed("cancel", t=T0 + 3_000),
        _structure(working={"w": 1}),
    ],
    "i6_charges_are_told": [
        _changed("final", story=[[*STORY[:5], "given back unfinished"]]),
        _changed("final", story=[[*STORY[:3], 0, *STORY[4:]]]),
        _changed("final", charged=0),
    ],
    "i9_charges_have_a_cause": [
        _changed("fault", name="drain-worker"),
        _changed("fault", name="rolling-restart", target="all"),
        _changed("fault", name="kill-gateway", target="gateway-0"),
        _changed("fault", name="script-flush", target="server"),
        _changed("fault", name="stop-server", target="server"),
        _changed("fault", name="kill-server", target="server"),
        # A fault of its own kind and time, on another worker; of another attempt; on its worker, and long over.
        _changed("fault", target="sim-1"),
        _changed("final", story=[[1, "w-1", T0, T0 + 10, T0 + 2_400, LAPSE]]),
        _changed("fault", name="partition", t=T0 - 3_000),
        _stopped(_changed("final", story=[[1, "w-0", T0, T0 + 10, T0 + 9_000, LAPSE]], ended_at=T0 + 12_000)),
        _changed("final", story=[[1, "w-0", T0, T0 + 10, T0 + 14_000, LAPSE]], ended_at=T0 + 15_000),
        _with_prompt("crash", worker="w-1", fault="sim-1"),
        _with_prompt("slow", worker="w-0", fault="sim-1"),
        # Its own prompt slows or garbles its engine: no cause for a charge.
        [
            {**e, "ask": ASK.replace("Tell", "[[garbage]] Tell")} if e["ev"] == "submit" else e
            for e in _changed("fault", target="sim-1")
        ],
    ],
    "i9_crashes_have_a_cause": [
        _changed("final", crashes=1),
        [{**e, "name": "kill-engine"} if e["ev"] == "fault" else e for e in _changed("final", crashes=1)],
        _with_prompt("crash", worker="w-1", fault="sim-0", crashes=1),
        _with_prompt("crash", worker="w-0", fault="sim-0", crashes=2),
    ],
    "i10_one_key_one_request": [_with({**ANSWER, "id": "s0.22ff"})],
    "i10_nobody_is_served_twice": [_with(_other())],
    "i11_nothing_is_left": [
        _structure(timers=[ID]),
        _structure(leases={"sim": [ID]}),
        _structure(lines={"{s0}:queue:sim:low": 1}),
        _structure(held={"w": [ID]}),
        _structure(leaks=["{s0}:request:x"]),
        _without(GOOD, ev="structure"),
    ],
    "i13_no_rewind": [_changed("heard", events=[*EVENTS, [T0, 0, "", "rewind", "{}"]])],
    "i14_first_come_first_served": [
        [
            *_told(id="s0.aaff", created_at=T0, begun_at=T0 + 20_000),
            _other(id="s0.bbff", created_at=T0 + 8_000, begun_at=T0 + 9_000),
        ]
    ],
    "j1_errors_have_a_cause": [
        _changed("seen", status=500, state=""),
        _changed("seen", status=404, state=""),
        _changed("answer", status=422),
        _changed("heard", how="broken"),
        _with(_heard(**{**OPENAI, "how": "error", "code": "internal_error"})),
    ],
    "j2_processes_stay": [
        _with({**EXIT, "t": T0 + 20_000, "told": False}),
        # Right at its start, and nothing was away; its engine killed while it worked; another one's engine killed.
        _with({**START, "pid": 8}, {**EXIT, "pid": 8, "t": T0 - 8_000, "told": False}),
        _with(_fault("kill-engine", "sim-0", T0 + 19_000), {**EXIT, "t": T0 + 20_000, "told": False}),
        _with(
            {**START, "pid": 8}, _fault("kill-engine", "sim-1", T0 - 8_100), {**EXIT, "pid": 8, "t": T0 - 8_000, "told": False}
        ),
        [*_with_prompt("crash", worker="w-1", fault="sim-0"), {**EXIT, "t": T0 + 300, "code": -11, "told": False}],
        _with({**START, "pid": 8}, _fault("partition", "sim-1", T0 - 8_100), {**EXIT, "pid": 8, "t": T0 - 8_000, "told": False}),
    ],
    "j3_orphans_end": [
        _with(*_orphan("left", ended_at=T0 + 14_500)),
        _with(*_orphan("broken", ended_at=T0 + 14_500)),
        _with(_fault("kill-gateway", "gateway-0", T0 + 900), *_orphan("broken", ended_at=T0 + 90_000)),
        _with(_fault("kill-gateway", "gateway-1", T0 + 900), *_orphan("left", ended_at=T0 + 20_000)),
    ],
    "j4_nonsense_is_quarantined": [
        [*_with_prompt("garbage", worker="w-1", fault="sim-0"), {**PROBED, "worker": "w-1"}],
        _with({"t": T0, "ev": "quarantined", "role": "sim-1", "worker": "w-1", "error": ""}),
        _with({"t": T0, "ev": "quarantined", "role": "sim-1", "worker": "w-1", "error": "The canary's tokens changed."}),
    ],
}
SCALED = [*[{**e, "scaled": True} if e["ev"] == "meta" else e for e in GOOD], *scaled_histories.GOOD]
BAD.update(scaled_histories.bad(SCALED, _final()))
BY_NAME: dict[str, Callable[..., Any]] = {function.__name__: function for function in INVARIANTS}
CASES = [(name, n) for name, histories in BAD.items() for n in range(len(histories))]


def test_a_good_history_has_no_violation() -> None:
    assert check(History(GOOD)) == []


def test_a_good_history_that_scaled_has_no_violation() -> None:
    assert check(History(SCALED)) == []


@pytest.mark.parametrize("n", range(6))
def test_a_retired_worker_that_was_struck_may_give_back(n: int) -> None:
    history = History(scaled_histories.excused(SCALED, _final())[n])
    assert list(BY_NAME["s4_retiring_costs_nothing"](Evidence(history))) == []


def test_a_fault_of_a_host_excuses_a_charge_on_its_workers_and_one_of_its_agent_does_not() -> None:
    def charged(fault: str, target: str) -> int:
        rest = [e for e in SCALED if e["ev"] not in ("final", "fault")]
        story = [1, "w-p", T0, T0 + 10, T0 + 2_400, LAPSE]
        history = [*rest, _fault(fault, target, T0 + 150), _final(story=[story])]
        return len(list(BY_NAME["i9_charges_have_a_cause"](Evidence(History(history)))))

    launch = scaled_histories.LAUNCH
    for blow in (("kill-worker", launch), ("partition", "agent-0"), ("stop-host", "agent-0"), ("kill-host", "agent-0")):
        assert charged(*blow) == 0, blow
    for blow in (("partition", "agent-1"), ("kill-agent", "agent-0"), ("stop-agent", "agent-0"), ("kill-leader", "autoscaler-0")):
        assert charged(*blow) == 1, blow


def test_a_worker_that_is_ordered_no_more_may_end_and_another_may_not() -> None:
    early = [{**e, "t": T0 - 1_000} if e["ev"] == "process" and e.get("host") and e["what"] == "exit" else e for e in SCALED]
    assert [v.what for v in BY_NAME["j2_processes_stay"](Evidence(History(early)))] == ["a process ended by itself"]


def test_a_second_good_request_changes_nothing() -> None:
    assert check(History(_told())) == []


def test_a_lost_answer_explains_a_request_nobody_knows() -> None:
    submit = {"t": T0 - 1, "ev": "submit", "n": "c1-1", "client": "c1", "key": "", "ask": ASK, "poison": ""}
    lost = {**ANSWER, "n": "c1-1", "id": "", "status": 0, "key": ""}
    assert check(History(_with(submit, lost, _other()))) == []


def test_a_stream_may_break_with_its_gateway() -> None:
    broken = _changed("heard", how="broken", events=EVENTS[:1])
    struck = [{**e, "name": "kill-gateway", "target": "gateway-0"} if e["ev"] == "fault" else e for e in GOOD]
    faults = [{**e, "n": 9} for e in struck if e["ev"] == "fault"]
    assert check(History([*broken, *faults])) == []


def _sentinel(*faults: Event, witnessed: bool, topology: str = "sentinel") -> list[Violation]:
    """What is said of the one request when Redis does not have it in the end."""
    history = [{**e, "topology": topology} if e["ev"] == "meta" else e for e in _without(GOOD, ev="final")]
    history = [e for e in history if witnessed or e["ev"] not in ("heard", "seen", "result", "cancel")]
    return [v for v in check(History([*history, *faults])) if v.invariant == "I1"]


def test_a_failover_may_forget_what_it_took_in_and_had_ended_and_nothing_else() -> None:
    moved = _fault("failover", "server", T0 + 2_000)
    assert _sentinel(moved, witnessed=True) == []
    assert [v.what for v in _sentinel(moved, witnessed=False)] == ["an acknowledged request is lost"]
    # Acknowledged long before, or long after: the others had it. No failover at all, or one server: a loss.
    for faults in ([_fault("failover", "server", T0 + 20_000)], [_fault("failover", "server", T0 - 20_000)], []):
        late = [{**f, "n": "f"} for f in faults] + [{**f, "n": "f", "phase": "undone", "t": f["t"] + 100} for f in faults]
        assert len(_sentinel(*late, witnessed=True)) == 1
    assert len(_sentinel(moved, witnessed=True, topology="single")) == 1


def test_two_faults_at_once_are_told_apart_from_a_loss() -> None:
    moved, killed = _fault("failover", "server", T0 - 1_000), _fault("kill-gateway", "gateway-0", T0 + 3_000)
    assert _sentinel(moved, killed, witnessed=False) == []
    assert len(_sentinel(moved, {**killed, "target": "gateway-1"}, witnessed=False)) == 1
    assert len(_sentinel(killed, witnessed=False)) == 1
    alive = {**SEEN, "state": "running", "t": T0 + 25_000}
    assert len(_sentinel(moved, killed, alive, witnessed=False)) == 1  # seen after both: something else lost it
    assert len(_sentinel(moved, killed, witnessed=False, topology="single")) == 1


def test_a_fault_on_the_very_worker_the_server_or_a_prompt_beside_it_excuses_a_charge() -> None:
    struck = [
        _changed("fault", name="stop-worker"),
        _changed("fault", name="partition"),
        _changed("fault", name="stop-fleet", target="all"),
        _changed("fault", name="outage", target="server"),
        _with_prompt("crash", worker="w-0", fault="sim-1"),
        _with_prompt("hang", worker="w-0", fault="sim-1", crashes=1),
    ]
    for history in struck:
        e = Evidence(History(history))
        assert [*BY_NAME["i9_charges_have_a_cause"](e), *BY_NAME["i9_crashes_have_a_cause"](e)] == []


@pytest.mark.parametrize(("killed", "found"), [("w-0", 0), ("w-1", 1)])
def test_a_dead_incarnation_may_be_charged_late(killed: str, found: int) -> None:
    """Amnesty after amnesty, because nobody swept: but it must have been that very one."""
    late = [1, "w-0", T0, T0 + 10, T0 + 9_000, LAPSE]
    history = [{**e, "workers": [killed]} if e["ev"] == "victims" else e for e in GOOD]
    history = [_final(story=[late], ended_at=T0 + 12_000) if e["ev"] == "final" else e for e in history]
    assert len(list(BY_NAME["i9_charges_have_a_cause"](Evidence(History(history))))) == found


def test_a_process_may_end_for_its_reasons() -> None:
    start, end = {**START, "pid": 8}, {**EXIT, "pid": 8, "t": T0 - 8_000, "told": False}
    no_redis = _with(start, _fault("kill-server", "server", T0 - 8_500), end)
    stopped = _with(start, _fault("stop-worker", "sim-0", T0 - 8_500), end)
    no_engine = _with(start, _fault("kill-engine", "sim-0", T0 - 8_500), end)
    engines = [_fault("kill-engine", "sim-0", T0 + 1_000 * n) for n in range(5)]
    worn_out = _with(*engines, {**EXIT, "t": T0 + 6_000, "told": False})
    crashed = [*_with_prompt("crash", worker="w-0", fault="sim-1"), {**EXIT, "t": T0 + 300, "code": -11, "told": False}]
    for history in (no_redis, stopped, no_engine, worn_out, crashed):
        assert list(BY_NAME["j2_processes_stay"](Evidence(History(history)))) == []


def test_orphans_may_live_as_long_as_their_readers_leases() -> None:
    in_grace = _with(*_orphan("left", ended_at=T0 + 8_000))
    in_lease = _with(_fault("kill-gateway", "gateway-0", T0 + 900), *_orphan("broken", ended_at=T0 + 33_000))
    for history in (in_grace, in_lease):
        assert list(BY_NAME["j3_orphans_end"](Evidence(History(history)))) == []


def test_nonsense_that_was_quarantined_is_well() -> None:
    history = [*_with_prompt("garbage", worker="w-1", fault="sim-0"), {**PROBED, "worker": "w-1", "state": "quarantined"}]
    sick = {"t": T0 + 9_000, "ev": "quarantined", "role": "sim-1", "worker": "w-1", "error": "The canary's tokens changed."}
    assert list(BY_NAME["j4_nonsense_is_quarantined"](Evidence(History([*history, sick])))) == []


def test_poison_may_fail() -> None:
    poisoned = [{**e, "poison": "crash"} if e["ev"] == "submit" else e for e in _changed("final", state="failed", log=FAILED_LOG)]
    assert list(BY_NAME["i6_failures_have_a_cause"](Evidence(History(poisoned)))) == []


def test_every_promise_is_tested() -> None:
    assert set(BAD) == set(BY_NAME)


@pytest.mark.parametrize(("name", "n"), CASES, ids=[f"{name}-{n}" for name, n in CASES])
def test_a_bad_history_is_caught_by_its_promise(name: str, n: int) -> None:
    found = list(BY_NAME[name](Evidence(History(copy.deepcopy(BAD[name][n])))))
    assert found
    assert found[0].what
