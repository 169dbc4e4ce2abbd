"""What the clients ask, and what must come of it: prompts, their limits, and the texts that are the one right answer.

Everything is greedy. The sim's text is reckoned here; the transformers' is taken once, before the first fault.
Never here: HTTP, faults.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dispatch.messages import InferenceRequest, InputKind, Sampling
from worker.engines.sim_text import Voice

SIM, DEMO = "sim", "demo"
_SUBJECTS = ("the sea", "a river", "turbines", "old mills", "rain", "the gate", "snow", "stone bridges", "a lake", "the wheel")
_SIM_TOKENS = (8, 40, 90, 160)
_DEMO_TOKENS = (12, 30)
POISONS = ("crash", "hang", "oom")
"""Tags that a worker with `sim_faults` understands; a request that carries one may fail."""
HARMLESS = ("slow", "garbage")
"""Tags that do something to the engine and nothing to the answer: a request that carries one must not fail."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing to ask. The same ask always has the same answer."""

    model: str
    chat: bool
    prompt: str
    max_tokens: int
    stop: tuple[str, ...] = ()
    poison: str = ""

    @property
    def key(self) -> str:
        """What names it in a history."""
        return f"{self.model}|{'chat' if self.chat else 'text'}|{self.max_tokens}|{','.join(self.stop)}|{self.prompt}"

    @property
    def is_fault(self) -> bool:
        """Whether it makes an engine do something."""
        return self.prompt.startswith("[[")

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt as a chat."""
        return [{"role": "user", "content": self.prompt}]

    def body(self) -> dict[str, Any]:
        """The fields every API shares."""
        words = {"messages": self.messages} if self.chat else {"prompt": self.prompt}
        stops = {"stop": list(self.stop)} if self.stop else {}
        return {"model": self.model, "max_tokens": self.max_tokens, "temperature": 0, **words, **stops}


def sim_ask(rng: random.Random) -> Ask:
    """Something for the sim."""
    prompt = f"Tell me of {rng.choice(_SUBJECTS)}, part {rng.randrange(40)}"
    stop = (" wheel",) if rng.random() < 0.15 else ()
    return Ask(SIM, rng.random() < 0.5, prompt, rng.choice(_SIM_TOKENS), stop)


def poison_ask(rng: random.Random) -> Ask:
    """Something that breaks the sim that works it."""
    poison = rng.choice((*POISONS, *HARMLESS))
    prompt = f"[[{poison}]] {rng.choice(_SUBJECTS)}, part {rng.randrange(40)}"
    return Ask(SIM, False, prompt, 24, poison=poison if poison in POISONS else "")


def slow_ask(rng: random.Random) -> Ask:
    """Something that takes more than a minute: whoever nobody wants any more must not."""
    return Ask(SIM, True, f"[[slow]] {rng.choice(_SUBJECTS)}, part {rng.randrange(40)}", 24)


def demo_asks() -> list[Ask]:
    """Everything that is ever asked of the demo model: few, for each needs its reference."""
    return [Ask(DEMO, n % 2 == 0, f"Tell me of {subject}", _DEMO_TOKENS[n % 2]) for n, subject in enumerate(_SUBJECTS[:6])]


def sim_answer(ask: Ask) -> tuple[str, int, str]:
    """Text, tokens and finish reason of the one right answer of the sim."""
    request = InferenceRequest(
        id="",
        model=ask.model,
        kind=InputKind.CHAT if ask.chat else InputKind.COMPLETION,
        sampling=Sampling(max_tokens=ask.max_tokens, temperature=0, stop=ask.stop),
        messages=tuple(ask.messages) if ask.chat else (),
        prompt="" if ask.chat else ask.prompt,
    )
    voice, texts, position = Voice(request), [], 0
    while True:
        text, _, ending = voice.say((voice.token(position),))
        texts.append(text)
        position += 1
        if ending is not None:
            return "".join(texts), voice.spoken_tokens, ending.value


class Answers:
    """The right answers known so far, by ask."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def news(self, ask: Ask) -> tuple[str, int, str] | None:
        """The answer of a sim ask not seen before, to be written down once."""
        if ask.key in self._known or ask.model != SIM:
            return None
        self._known.add(ask.key)
        return sim_answer(ask)


def choose(rng: random.Random, demo: Sequence[Ask], *, poison: float) -> Ask:
    """What a client asks next."""
    if rng.random() < poison:
        return poison_ask(rng)
    if demo and rng.random() < 0.2:
        return rng.choice(demo)
    return sim_ask(rng)
