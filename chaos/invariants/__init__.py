"""The promises, one function each from a history to its violations; the numbers are those of the invariants in the design.

A new one is one function in a file of its kind, and its name in `INVARIANTS`. Never here: how they are told (report.py).
"""

from collections.abc import Callable

from chaos.evidence import Evidence
from chaos.invariants.attempts import i5_the_fence_holds, i6_attempts_are_bounded, i6_deaths_are_charged, i6_failures_have_a_cause
from chaos.invariants.base import Found, Violation
from chaos.invariants.charges import i6_charges_are_told, i9_charges_have_a_cause, i9_crashes_have_a_cause
from chaos.invariants.clients import i10_nobody_is_served_twice, i10_one_key_one_request, j1_errors_have_a_cause
from chaos.invariants.endings import i1_every_request_ends, i2_endings_absorb, i8_cancel_is_final, j3_orphans_end
from chaos.invariants.lines import i7_memory_is_kept, i7_two_lines_meet, i11_nothing_is_left, i14_first_come_first_served
from chaos.invariants.logs import i3_clients_heard_the_log, i3_logs_are_chained, i4_texts_are_right, i13_no_rewind
from chaos.invariants.processes import j2_processes_stay, j4_nonsense_is_quarantined
from chaos.invariants.scaling import (
    s1_one_leader_acts,
    s2_what_is_ordered_runs,
    s3_nobody_is_left,
    s4_retiring_costs_nothing,
    s5_no_launch_runs_twice,
)

__all__ = ["INVARIANTS", "Found", "Violation"]

INVARIANTS: tuple[Callable[[Evidence], Found], ...] = (
    i1_every_request_ends,
    i2_endings_absorb,
    i3_logs_are_chained,
    i3_clients_heard_the_log,
    i4_texts_are_right,
    i5_the_fence_holds,
    i6_attempts_are_bounded,
    i6_deaths_are_charged,
    i6_failures_have_a_cause,
    i7_memory_is_kept,
    i7_two_lines_meet,
    i8_cancel_is_final,
    i6_charges_are_told,
    i9_charges_have_a_cause,
    i9_crashes_have_a_cause,
    i10_one_key_one_request,
    i10_nobody_is_served_twice,
    i11_nothing_is_left,
    i13_no_rewind,
    i14_first_come_first_served,
    j1_errors_have_a_cause,
    j2_processes_stay,
    j3_orphans_end,
    j4_nonsense_is_quarantined,
    s1_one_leader_acts,
    s2_what_is_ordered_runs,
    s3_nobody_is_left,
    s4_retiring_costs_nothing,
    s5_no_launch_runs_twice,
)
