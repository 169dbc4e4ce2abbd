"""From token ids to the text a client sees: UTF-8 whole, stop strings never shown, every ending noticed. Pure.

Rule: after any ids, the text shown is a function of those ids alone, however they came in. So a later attempt that is
fed the ids already sent knows exactly what was shown, and goes on with what was still held back.
Never here: tokenizers, engines, I/O.
"""

from collections.abc import Callable, Sequence

from dispatch.messages import FinishReason

_HALF = "\ufffd"  # what a decoder writes for bytes that are no whole character (yet)


class Transcript:
    """One answer's ids and text. `decode` turns ids into text without special tokens; `eos` are the ids that end it."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        eos: frozenset[int] = frozenset(),
    ) -> None:
        self._decode = decode
        self._max_tokens = max_tokens
        self._stop = tuple(text for text in stop if text)
        self._eos = eos
        self._ids: list[int] = []
        # Decoding starts at `_window`, one piece before what is new, because decoders treat the first piece differently.
        self._window = 0
        self._whole = 0  # up to here the ids decode to whole characters
        self._passed_on = 0  # characters of the window's text that went on to the stop strings
        self._held = ""  # text that may be the start of a stop string
        self._untaken = ""
        self.ending: FinishReason | None = None

    @property
    def tokens(self) -> int:
        """How many ids it has."""
        return len(self._ids)

    def feed(self, token: int) -> None:
        """Add the next id. What comes after an ending is ignored."""
        if self.ending is not None:
            return
        self._ids.append(token)
        if token in self._eos:
            self._end(FinishReason.STOP, decoded=len(self._ids) - 1)
            return
        self._show(self._grown())
        if self.ending is None and len(self._ids) >= self._max_tokens:
            self._end(FinishReason.LENGTH, decoded=len(self._ids))

    def take(self) -> str:
        """The text shown since the last take."""
        text, self._untaken = self._untaken, ""
        return text

    def _grown(self) -> str:
        text = self._decode(self._ids[self._window :])
        whole = text[:-1] if text.endswith(_HALF) else text
        new = whole[self._passed_on :]
        if new and len(whole) == len(text):
            self._window, self._whole = self._whole, len(self._ids)
            self._passed_on = len(self._decode(self._ids[self._window :]))
        elif new:
            self._passed_on = len(whole)
        return new

    def _show(self, new: str) -> None:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._untaken += text[: min(found)]
            self._held = ""
            self.ending = FinishReason.STOP
            return
        held = _possible_start(text, self._stop)
        self._untaken += text[: len(text) - held]
        self._held = text[len(text) - held :]

    def _end(self, reason: FinishReason, decoded: int) -> None:
        """No more will come: half a character is shown as the decoder writes it, and what was held is no stop string."""
        self._show(self._decode(self._ids[self._window : decoded])[self._passed_on :])
        if self.ending is None:
            self._untaken += self._held
            self._held = ""
            self.ending = reason


def _possible_start(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of `text` with which a stop string could begin."""
    longest = min(len(text), max((len(stop) for stop in stops), default=1) - 1)
    return next((size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in stops)), 0)
