"""What the sim engine says: text as a pure function of prompt and position, with its endings. Pure.

A token id is an index into WORDS; token `i` of an answer is a hash of the prompt and `i`. So any attempt can continue any
other's text, and a test can compute what must come.
"""

import hashlib
from collections.abc import Sequence

import msgspec

from dispatch.messages import FinishReason, InferenceRequest, InputKind
from dispatch.pricing import prompt_tokens

WORDS: tuple[str, ...] = (
    " the", " water", " runs", " down", " from", " gate", " to", " turbine", ",", " and", " a", " river", " of", " words",
    " turns", " slowly", " under", " stone", " while", " light", " falls", " on", " every", " wheel", ".", " It", " is",
    " said", " that", " power", " waits", " in", " still", " lakes", " below", " snow", " où", " naïve", " größer", " ≈ 42",
    " 水", "力", " энергия", " 🚀", " e\u0301", " 👩‍🔧", " between", " two", " hills", " near", " where", " mills", " once",
    " stood", ";", " their", " doors", " open", " wide", " for", " rain", " or", " sun", "\n",
)  # fmt: skip
_SHORTEST, _SPREAD = 24, 488
_MASK = (1 << 64) - 1


class Voice:
    """One request's answer: which token stands where, where it ends, and what may be said so far."""

    def __init__(self, request: InferenceRequest) -> None:
        self.prompt_tokens = prompt_tokens(request)
        self.spoken_tokens = 0
        prompt = (request.prompt_token_ids, request.messages, request.prompt, request.input)
        self._seed = int.from_bytes(hashlib.blake2b(msgspec.json.encode(prompt), digest_size=8).digest(), "big")
        self._stops = request.sampling.stop
        self._max_tokens = request.sampling.max_tokens
        # Load generators ask for exact lengths with this field of the OpenAI-compatible servers.
        never_stops = bool(request.body.get("ignore_eos"))
        self._natural_end = None if never_stops else _SHORTEST + _mix(self._seed ^ _MASK) % _SPREAD
        if request.kind is InputKind.OPAQUE:
            self._natural_end = 1
        self._unsaid: tuple[int, ...] = ()

    def token(self, position: int) -> int:
        """The token at that position of the answer, from 0."""
        return _mix(self._seed + position * 0x9E3779B97F4A7C15) % len(WORDS)

    def ends_at(self, position: int) -> FinishReason | None:
        """Why an answer of that many tokens is over, stop strings aside."""
        if self._natural_end is not None and position >= self._natural_end:
            return FinishReason.STOP
        return FinishReason.LENGTH if position >= self._max_tokens else None

    def resume(self, done: Sequence[int]) -> FinishReason | None:
        """Take over after `done`, which was sent before; the ending, if that was already all."""
        self.spoken_tokens = len(done)
        if first_stop(text_of(done), self._stops) is not None:
            return FinishReason.STOP
        return self.ends_at(len(done))

    def say(self, fresh: Sequence[int]) -> tuple[str, tuple[int, ...], FinishReason | None]:
        """What may be sent now that `fresh` tokens are there: text, its tokens, and the ending if this is it.

        Whole tokens are held back while their text could be the beginning of a stop string: what was sent is then always
        the text of the tokens that were sent, and another attempt can go on from there.
        """
        tokens = self._unsaid + tuple(fresh)
        text = text_of(tokens)
        ending = self.ends_at(self.spoken_tokens + len(tokens))
        cut = first_stop(text, self._stops)
        if cut is not None:
            tokens = _covering(tokens, cut)
            text, ending = text[:cut], FinishReason.STOP
        elif ending is None:
            tokens = tokens[: _safe(tokens, text, self._stops)]
            text = text_of(tokens)
            self._unsaid = (self._unsaid + tuple(fresh))[len(tokens) :]
        self.spoken_tokens += len(tokens)
        return text, tokens, ending


def text_of(tokens: Sequence[int]) -> str:
    """The text of token ids."""
    return "".join(WORDS[t] for t in tokens)


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins, or None."""
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return min(found) if found else None


def _covering(tokens: tuple[int, ...], length: int) -> tuple[int, ...]:
    """The fewest first tokens whose text has that length."""
    size = 0
    for index, token in enumerate(tokens):
        if size >= length:
            return tokens[:index]
        size += len(WORDS[token])
    return tokens


def _safe(tokens: tuple[int, ...], text: str, stops: Sequence[str]) -> int:
    """How many first tokens can be sent: none of their text may turn out to belong to a stop string."""
    held = max((_overlap(text, stop) for stop in stops), default=0)
    size, count = len(text), len(tokens)
    while held and count and size > len(text) - held:
        count -= 1
        size -= len(WORDS[tokens[count]])
    return count


def _overlap(text: str, stop: str) -> int:
    """How much of the end of `text` is a beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _mix(value: int) -> int:
    """Splitmix64: a good hash of an integer, the same everywhere."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
