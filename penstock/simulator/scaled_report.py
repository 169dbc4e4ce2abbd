"""What came of a scaled run, in figures: one row a rule. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from penstock.simulator.report import quantile
from penstock.simulator.scaled import Scaled

HEAD = ("rule", "GPU-seconds", "within target", "wait p50", "wait p95", "wait max", "most ready", "starts", "turns")


@dataclass(frozen=True, slots=True)
class ScaledRow:
    """One rule's figures. `attained`: the part of requests granted within the target; waits are from arrival to first grant."""

    rule: str
    gpu_s: float
    attained: float
    wait_p50_s: float
    wait_p95_s: float
    wait_max_s: float
    most_ready: int
    starts: int
    turns: int

    def document(self) -> Mapping[str, Any]:
        """As printed for programs."""
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}

    def cells(self) -> list[str]:
        """As printed for eyes, under HEAD."""
        waits = (self.wait_p50_s, self.wait_p95_s, self.wait_max_s)
        counts = (self.most_ready, self.starts, self.turns)
        return [self.rule, f"{self.gpu_s:,.0f}", f"{self.attained:.1%}", *(f"{s:.1f}s" for s in waits), *map(str, counts)]


def scaled_row(rule: str, scaled: Scaled, target_s: float) -> ScaledRow:
    """The figures of one run."""
    waits = sorted(scaled.delays_s)
    return ScaledRow(
        rule=rule,
        gpu_s=scaled.gpu_s,
        attained=sum(wait <= target_s for wait in waits) / len(waits),
        wait_p50_s=quantile(waits, 0.5),
        wait_p95_s=quantile(waits, 0.95),
        wait_max_s=waits[-1],
        most_ready=max(tick.ready for tick in scaled.ticks),
        starts=scaled.starts,
        turns=scaled.turns,
    )
