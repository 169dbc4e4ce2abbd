"""The checker: every promise held against a history. Pure, offline.

Never here: the promises themselves (invariants/).
"""

from chaos.evidence import Evidence
from chaos.history import History
from chaos.invariants import INVARIANTS, Violation


def check(history: History) -> list[Violation]:
    """All violations of all promises."""
    evidence = Evidence(history)
    return [violation for invariant in INVARIANTS for violation in invariant(evidence)]
