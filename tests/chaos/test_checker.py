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
from chaos.invariants import INVARIANTS

Event = dict[str, Any]
ID, ASK, GATEWAY = "s0.00ff", "sim|text|2||Tell me", "http://g0"
T0 = 1_000_000.0


def _log(*entries: tuple[int, str, dict[str, Any]], request: str = ID) -> list[list[Any]]:
    chain = hashlib.sha1(request.encode()).hexdigest()[:16]
    log = []
    for seq, (attempt, kind, data) in enumerate(entries, 1):
        text = json.dumps(data)
        chain = hashlib.sha1((chain + text).encode()).hexdigest()[:16]
        log.append([seq, attempt, kind, text, chain])
    return log


END = {"state": "completed", "attempts": 2, "finish_reason": "length", "usage": {"completion_tokens": 2}}
LOG = _log((1, "chunk", {"text": " a", "tokens": [1]}), (2, "chunk", {"text": " b", "tokens": [2]}), (2, "end", END))


def _final(**changes: Any) -> Event:
    final = {
        "t": T0 + 30_000, "ev": "final", "id": ID, "model": "sim", "state": "completed", "ended": True, "priority": "normal",
        "attempt": 2, "charged": 1, "crashes": 0, "max_attempts": 10, "cost": 30, "seq": 3, "chain": LOG[-1][4],
        "created_at": T0, "begun_at": T0 + 10, "deadline_at": T0 + 240_000, "ended_at": T0 + 5_000, "retry_of": "", "log": LOG,
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
    sample = {"t": T0, "ev": "sample", "worker": "w", "used": 10, "limit": 100, "held": 1, "slots": 4, "missed": False}
    return {**sample, **changes}


GOOD: list[Event] = [
    {"t": T0 - 9_000, "ev": "meta", "topology": "single", "lease_s": 2.0, "gateways": {GATEWAY: "gateway-0"}},
    {"t": T0 - 9_000, "ev": "process", "role": "sim-0", "what": "start", "pid": 7},
    {"t": T0 - 1, "ev": "reference", "ask": ASK, "text": " a b", "tokens": 2, "finish_reason": "length"},
    {"t": T0 - 1, "ev": "submit", "n": "c0-1", "client": "c0", "key": "k", "ask": ASK, "poison": ""},
    {"t": T0, "ev": "answer", "n": "c0-1", "client": "c0", "status": 202, "id": ID, "key": "k", "code": "", "gateway": GATEWAY},
    {"t": T0 + 150, "ev": "fault", "n": 0, "name": "kill-worker", "phase": "do", "target": "sim-0", "for_s": 0},
    {"t": T0 + 150, "ev": "fault", "n": 0, "name": "kill-worker", "phase": "undone", "target": "sim-0"},
    {"t": T0 + 151, "ev": "victims", "role": "sim-0", "cause": "SIGKILL", "requests": [[ID, 1, 1]]},
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


def _without(history: list[Event], **fields: Any) -> list[Event]:
    return [e for e in history if any(e.get(k) != v for k, v in fields.items())]


def _changed(ev: str, **changes: Any) -> list[Event]:
    return [{**e, **changes} if e["ev"] == ev else e for e in GOOD]


def _with(*more: Event) -> list[Event]:
    return [*GOOD, *more]


def _other(ended_at: float = T0 + 9_000, **changes: Any) -> Event:
    """A second request, of one attempt, that nobody read."""
    request = changes.get("id", "s0.11ff")
    log = _log((1, "chunk", {"text": " a b", "tokens": [1, 2]}), (1, "end", END), request=request)
    good = _final(id=request, attempt=1, charged=0, log=log, seq=2, chain=log[-1][4], ended_at=ended_at)
    return {**good, **changes}


def _told(**changes: Any) -> list[Event]:
    """A second request with the submit and answer that go with it."""
    other = _other(**changes)
    submit = {"t": T0 - 1, "ev": "submit", "n": "c1-1", "client": "c1", "key": "", "ask": ASK, "poison": ""}
    answer = {**GOOD[4], "n": "c1-1", "id": other["id"], "key": ""}
    return _with(submit, answer, other)


def _structure(**changes: Any) -> list[Event]:
    return _changed("structure", **changes)


FAILED = {"state": "failed", "attempts": 2, "error": {"code": "engine_error"}}
FAILED_LOG = _log((1, "chunk", {"text": " a", "tokens": [1]}), (2, "end", FAILED))
SEVERAL_ENDS = _log((1, "chunk", {"text": " a", "tokens": [1]}), (2, "end", END), (2, "end", END))
WRONG = _log((1, "chunk", {"text": " a", "tokens": [1]}), (2, "chunk", {"text": " X", "tokens": [2]}), (2, "end", END))
TOKENLESS = _log((1, "chunk", {"text": " a", "tokens": [1]}), (2, "chunk", {"text": " b", "tokens": []}), (2, "end", END))
EVENTS = _heard()["events"]
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
        _with({**GOOD[11], "t": T0 + 40_000, "state": "running"}),
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
    "i9_charges_have_a_cause": [
        _changed("fault", name="drain-worker"),
        _changed("final", crashes=1, created_at=T0 + 40_000, ended_at=T0 + 41_000),
    ],
    "i10_one_key_one_request": [_with({**GOOD[4], "id": "s0.22ff"})],
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
    "j2_processes_stay": [_with({**GOOD[8], "t": T0 + 20_000, "told": False})],
}
BY_NAME: dict[str, Callable[..., Any]] = {function.__name__: function for function in INVARIANTS}
CASES = [(name, n) for name, histories in BAD.items() for n in range(len(histories))]


def test_a_good_history_has_no_violation() -> None:
    assert check(History(GOOD)) == []


def test_a_second_good_request_changes_nothing() -> None:
    assert check(History(_told())) == []


def test_a_lost_answer_explains_a_request_nobody_knows() -> None:
    submit = {"t": T0 - 1, "ev": "submit", "n": "c1-1", "client": "c1", "key": "", "ask": ASK, "poison": ""}
    lost = {**GOOD[4], "n": "c1-1", "id": "", "status": 0, "key": ""}
    assert check(History(_with(submit, lost, _other()))) == []


def test_a_stream_may_break_with_its_gateway() -> None:
    broken = _changed("heard", how="broken", events=EVENTS[:1])
    struck = [{**e, "name": "kill-gateway", "target": "gateway-0"} if e["ev"] == "fault" else e for e in GOOD]
    faults = [{**e, "n": 9} for e in struck if e["ev"] == "fault"]
    assert check(History([*broken, *faults])) == []


def test_a_failover_may_forget_what_had_ended_and_nothing_else() -> None:
    history = [{**e, "topology": "sentinel"} if e["ev"] == "meta" else e for e in _without(GOOD, ev="final")]
    assert check(History(history)) == []
    unseen = [e for e in history if e["ev"] not in ("heard", "seen", "result", "cancel")]
    assert [v.what for v in check(History(unseen))] == ["an acknowledged request is lost"]


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
