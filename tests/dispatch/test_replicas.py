"""Whom a promise has to reach: who stood beside this master lately, as INFO REPLICATION told it."""

from typing import Any

from dispatch.replicas import WINDOW_S, Replicas


def info(*ports: int, history: str = "h1", role: str = "master", state: str = "online", lag: int = 0) -> dict[str, Any]:
    """What redis-py makes of the reply; Redis and Valkey name the lines alike."""
    lines = {f"slave{n}": {"ip": "10.0.0.9", "port": port, "state": state, "lag": lag} for n, port in enumerate(ports)}
    return {"role": role, "connected_slaves": len(ports), "master_replid": history, "slave_read_repl_offset": 7, **lines}


def test_all_that_stand_are_needed_and_one_at_least() -> None:
    replicas = Replicas()
    assert replicas.needed == 1
    assert replicas.saw(info(), 0.0) == 1
    assert replicas.saw(info(1, 2), 1.0) == 2
    assert replicas.saw(info(1, 2, 3), 2.0) == replicas.needed == 3


def test_one_that_left_is_needed_a_while_longer() -> None:
    replicas = Replicas()
    replicas.saw(info(1, 2), 0.0)
    assert replicas.saw(info(1), 1.0) == 2
    assert replicas.saw(info(1), 1.0 + WINDOW_S - 0.1) == 2
    assert replicas.saw(info(1), 1.0 + WINDOW_S) == 1


def test_who_was_not_looked_at_for_long_may_have_left_this_moment() -> None:
    replicas = Replicas()
    replicas.saw(info(1, 2), 0.0)
    assert replicas.saw(info(1), 100.0) == 2
    assert replicas.saw(info(1), 100.0 + WINDOW_S) == 1


def test_a_newcomer_does_not_stand_in_for_one_that_left() -> None:
    replicas = Replicas()
    replicas.saw(info(1, 2), 0.0)
    assert replicas.saw(info(1, 3), 1.0) == 3


def test_several_behind_one_address_are_several() -> None:
    assert Replicas().saw(info(1, 1), 0.0) == 2


def test_one_that_does_not_follow_or_is_silent_does_not_stand() -> None:
    assert Replicas().saw(info(1, 2, state="send_bulk"), 0.0) == 1
    replicas = Replicas()
    replicas.saw(info(1, 2), 0.0)
    assert replicas.saw(info(1, 2, lag=3), 3.0) == 2
    assert replicas.saw(info(1, 2, lag=9), 3.0 + WINDOW_S) == 1


def test_another_history_starts_anew_and_the_old_one_stays_known() -> None:
    replicas = Replicas()
    replicas.saw(info(1, 2), 0.0)
    assert replicas.saw(info(history="h2"), 1.0) == 1
    assert replicas.saw(info(2), 1.5) == 2, "the old master's word, come late"
    assert replicas.saw(info(5, 6, history="h2"), 2.0) == 2


def test_a_server_that_is_no_master_promises_nothing() -> None:
    assert Replicas().saw(info(1, role="slave"), 0.0) == 0
