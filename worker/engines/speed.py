"""How fast an engine is, learned from its own steps: a step takes a + b for each sequence that decodes + c for each prompt token.

An idle engine makes no steps and learns nothing, so a quiet hour lowers no weight. What is said is comparable between
engines whatever their load: decoded tokens a second with 32 sequences, and prompt tokens a second. Pure.
Never here: clocks, who makes the steps.
"""

from dataclasses import dataclass

BUSY_SEQUENCES = 32
GPU_SHAPE, CPU_SHAPE = 0.2, 0.9
"""Of a step with 32 sequences, what the sequences take, before anything was measured: a GPU reads its weights anyway."""
_FORGET_S = 30.0  # of steps: what is older weighs less than a third
_RIDGE = 1e-6  # how much the last estimate weighs against the evidence, where that says little
_PREFILL_RIDGE = 3e-4  # prompts of a few tokens hardly show in a step: noise must not be taken for their speed
_PREFILL_UNIT = 1024
_FASTEST = 10_000_000.0  # prompt tokens/s: no device is, but a fit may be
_ENOUGH_S = 0.5


@dataclass(frozen=True, slots=True)
class Speeds:
    """`decode`: tokens/s with 32 sequences; `prefill`: prompt tokens/s."""

    decode: float
    prefill: float


class Speedometer:
    """Least squares over the steps, old ones forgotten, leaning on the last estimate where the steps tell nothing apart."""

    def __init__(self, seed: Speeds, shape: float = GPU_SHAPE) -> None:
        self.busy_s = 0.0
        whole = BUSY_SEQUENCES / seed.decode
        # In units of a step: its base, its 32 sequences, 1024 prompt tokens.
        self._x = [whole * (1 - shape), whole * shape, _PREFILL_UNIT / seed.prefill]
        self._scale = tuple(self._x)
        self._sums = [[0.0] * 4 for _ in range(3)]
        self._decoding_s = 0.0
        self._sequences = 0.0
        self._seen_s = 0.0
        self._is_news = False
        self._speeds = seed

    def stepped(self, decoding: int, prefilled: int, took_s: float) -> None:
        """One step: sequences that decoded in it, prompt tokens it read, seconds."""
        self.busy_s += took_s
        self._seen_s += took_s
        self._is_news = True
        kept = max(0.0, 1.0 - took_s / _FORGET_S)
        row = (1.0, decoding / BUSY_SEQUENCES, prefilled / _PREFILL_UNIT, took_s)
        for i in range(3):
            sums = self._sums[i]
            for j in range(4):
                sums[j] = sums[j] * kept + row[i] * row[j]
        self._decoding_s = self._decoding_s * kept + (took_s if decoding else 0.0)
        self._sequences = self._sequences * kept + decoding * took_s

    def speeds(self) -> Speeds:
        """As it is known now: the seed until half a second of steps was seen."""
        if self._seen_s < _ENOUGH_S or not self._is_news:
            return self._speeds
        self._is_news = False
        self._x = self._solved()
        base, sequences, prefill = self._x
        decode = self._speeds.decode
        if self._decoding_s > 0 and (step_s := self._step_s(base, sequences)) > 0:
            decode = BUSY_SEQUENCES / step_s
        self._speeds = Speeds(decode, min(_FASTEST, _PREFILL_UNIT / prefill) if prefill > 0 else self._speeds.prefill)
        return self._speeds

    def _step_s(self, base: float, sequences: float) -> float:
        """A step with 32 sequences. What was seen bounds it: more sequences take longer, at most in proportion."""
        mean = self._sequences / self._decoding_s / BUSY_SEQUENCES
        seen = base + sequences * mean
        low, high = sorted((seen, seen / mean))
        return min(max(base + sequences, low), high)

    def _solved(self) -> list[float]:
        """The three times: the evidence, and a little of the last estimate, each in its own unit's scale."""
        rows = []
        steps = self._sums[0][0] + 1.0
        leaning = (_RIDGE * self._scale[0] ** 2, _RIDGE * self._scale[0] ** 2, _PREFILL_RIDGE * self._scale[2] ** 2)
        for i in range(3):
            scale = self._scale[i]
            row = [self._sums[i][j] * scale * self._scale[j] for j in range(3)]
            row.append(self._sums[i][3] * scale + steps * leaning[i] * self._x[i] / scale)
            row[i] += steps * leaning[i]
            rows.append(row)
        return [value * scale for value, scale in zip(_solve(rows), self._scale, strict=True)]


def _solve(rows: list[list[float]]) -> list[float]:
    """Three equations with three unknowns, by elimination with pivots; the ridge keeps them apart."""
    size = len(rows)
    for at in range(size):
        pivot = max(range(at, size), key=lambda i: abs(rows[i][at]))
        rows[at], rows[pivot] = rows[pivot], rows[at]
        for i in range(size):
            if i != at:
                factor = rows[i][at] / rows[at][at]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[at], strict=True)]
    return [rows[i][size] / rows[i][i] for i in range(size)]
