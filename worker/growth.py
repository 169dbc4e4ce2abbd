"""How much memory one request fills, and how that grows; and what it asks of those beside it.

Never here: who must make room (worker/held.py), what that does to a request (worker/execution.py).
"""

from dispatch.messages import Grant, InferenceRequest, InputKind
from dispatch.pricing import PAGE_TOKENS, cost_tokens, prompt_tokens
from worker.admission import Holding, expected_tokens


class Growth:
    """One request's KV tokens. `moves_overruns`: its engine grows page by page, and what outgrew its cost can be moved."""

    def __init__(self, granted_tokens: int, *, moves_overruns: bool) -> None:
        self.spoken_tokens = 0
        """Tokens of its answer so far, those of earlier attempts included."""
        self.told_tokens = 0
        """So many of them were counted for what is learned of lengths."""
        self.is_text = False
        self.ended_by_itself = False
        self.at_most_tokens = granted_tokens
        """What it counts at the most, cheaply: nothing that is kept for it is more."""
        self._granted_tokens = granted_tokens
        self._moves_overruns = moves_overruns
        self._prompt_tokens = self._most_tokens = 0

    def begun(self, request: InferenceRequest, most_tokens: int, done_tokens: int) -> None:
        """Its input is known now. An opaque one fills from the start all it declared."""
        self.is_text = request.kind is not InputKind.OPAQUE
        self._prompt_tokens = prompt_tokens(request) if self.is_text else most_tokens
        self._most_tokens = most_tokens
        self.at_most_tokens = max(self._granted_tokens, most_tokens)
        self.spoken_tokens = self.told_tokens = done_tokens

    def count(self, tokens: int) -> int:
        """It said more; how many pages that took: its answer begins in the midst of its prompt's last page."""
        before = self._prompt_tokens + self.spoken_tokens
        self.spoken_tokens += tokens
        return -(-(before + tokens) // PAGE_TOKENS) + -before // PAGE_TOKENS

    def holding(self, *, generating: bool) -> Holding:
        """What it costs, as it is known now."""
        granted, most = self._granted_tokens, self._most_tokens
        if not most:
            return Holding(granted, granted)
        if not self._moves_overruns:
            return Holding(granted, most, 0, most)
        used = min(most, cost_tokens(self._prompt_tokens, self.spoken_tokens)) if generating else 0
        needed = expected_tokens(granted, self._prompt_tokens, self.spoken_tokens, most)
        return Holding(granted, needed, used, most)

    @property
    def dearer_tokens(self) -> int:
        """Its cost when its present one proved too small: as if it were half done."""
        grown = cost_tokens(self._prompt_tokens, 2 * max(PAGE_TOKENS, self.spoken_tokens))
        return max(self._granted_tokens, min(self._most_tokens, grown))


class Around:
    """What an execution asks of, and tells, those beside it. This one stands for nobody beside it."""

    def begun(self, pages: int) -> None:
        """It fills memory from now on: so many pages with its next step."""

    def grown(self, pages: int) -> None:
        """It filled so many pages more."""

    def is_crowded(self, grant: Grant) -> bool:
        """Whether the memory is so full with the others that it is theirs it lacks."""
        return False

    async def largest_tokens(self) -> int:
        """The KV tokens of the largest worker of this model."""
        return 0

    async def before_move(self) -> None:
        """It is about to be moved."""
