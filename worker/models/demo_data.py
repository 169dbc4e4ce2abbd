"""The conversations and plain texts the demo model is trained on, built from `demo_text.txt`. Pure, given a seed.

Never here: training (make_demo.py). Everything here was written for Penstock and may be redistributed with it.
"""

import random
from collections.abc import Iterator
from pathlib import Path

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Roles are system, user and assistant; got ' + message['role'] + '.') }}"
    "{% endif %}"
    "{% if message['content'] is string %}{% set content = message['content'] %}"
    "{% else %}{% set content = message['content'] | map(attribute='text') | join('') %}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + content | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are a friendly guide at a dam.",
    "Answer in simple words.",
    "Be kind and clear.",
)

# (questions, which of the subject's sentences answer them, how the answer begins)
_KINDS: tuple[tuple[tuple[str, ...], tuple[int, ...], str], ...] = (
    (("What is {x}?", "what is {x}", "Explain {x}.", "Explain {x} to a child.", "Define {x}"), (0, 1, 2), ""),
    (("Tell me about {x}.", "Tell me more about {x}, please.", "Describe {x}."), (0, 1, 2, 3), ""),
    (("How does {x} work?", "What does {x} do?", "How do people use {x}?"), (1, 2, 0, 3), "Let me explain. "),
    (("Why do we need {x}?", "Why is {x} important?", "What is good about {x}?"), (2, 0, 3), "There is a simple reason. "),
    (
        ("Write a short text about {x}.", "Tell me a story about {x}.", "Write about {x}", "Write a poem about {x}."),
        (0, 1, 2, 3),
        "Here is a short text about {x}. ",
    ),
    (
        ("Give me a fact about {x}.", "Say something about {x}.", "Name one thing about {x}"),
        (3, 1),
        "Here is something about {x}. ",
    ),
    (("Give me advice about {x}.", "What should I know about {x}?"), (3, 2, 1), "Keep this in mind. "),
)

_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Hi there", "Hello, how are you?", "Good morning", "hey"),
        "Hello! I am well, thank you. I am a small model that knows a little about water, machines and the weather. "
        "What would you like to hear about?",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Are you a person?"),
        "I am a very small language model that was made to show how Penstock works. "
        "I know only a few hundred sentences, but I can write them quickly. Ask me about rivers, turbines or bread.",
    ),
    (
        ("What is Penstock?", "Tell me about Penstock.", "What does Penstock do?"),
        "Penstock leads requests from a gate to the machines that can answer them. "
        "Each request waits in a line until a worker has room for it. "
        "When a worker falls silent, another one goes on where it stopped, and the reader does not notice.",
    ),
    (
        ("Count to ten.", "Count from one to ten", "Can you count?"),
        "Of course. One, two, three, four, five, six, seven, eight, nine, ten. That was all of them, and none came twice.",
    ),
    (
        ("Thank you", "Thanks!", "Thank you very much."),
        "You are welcome. It was a pleasure to help you. Come back whenever you have another question about water or machines.",
    ),
    (
        ("Tell me a joke.", "Make me laugh", "Say something funny."),
        "Why did the drop of water go to school? It wanted to become a current affair. "
        "The teacher said that it should first learn to wait in the queue.",
    ),
    (
        ("Goodbye", "Bye", "See you later"),
        "Goodbye! May your rivers be calm and your lines be short. I will be here when you come back.",
    ),
    (
        ("Say hi", "Say hello", "Say hi in one sentence.", "Say something", "ping", "test", "Test message"),
        "Hi! The gate is open, the water is moving, and I am happy to talk with you today.",
    ),
)


def subjects() -> dict[str, list[str]]:
    """The subjects of the text file with their sentences."""
    lines = (Path(__file__).parent / "demo_text.txt").read_text(encoding="utf-8").splitlines()
    rows = [[part.strip() for part in line.split("|")] for line in lines if line and not line.startswith("#")]
    return {row[0]: row[1:] for row in rows}


def chat(turns: list[tuple[str, str]]) -> str:
    """A conversation as the chat template writes it."""
    return BOS + "".join(f"{ROLES[role]}{text}{EOS}" for role, text in turns)


def documents(seed: int) -> Iterator[str]:
    """Endless training documents: mostly one question and its answer, some longer talks, odd prompts and plain text."""
    rng = random.Random(seed)
    known = subjects()
    names = list(known)
    words = sorted({word for sentences in known.values() for sentence in sentences for word in sentence.split()})
    while True:
        turns: list[tuple[str, str]] = []
        if rng.random() < 0.25:
            turns.append(("system", rng.choice(_SYSTEMS)))
        dice = rng.random()
        if dice < 0.08:
            subject = rng.choice(names)
            yield f"{BOS}{' '.join(known[subject])}{EOS}"
            continue
        for _ in range(1 if dice < 0.85 else rng.randint(2, 5)):
            turns.extend(_exchange(rng, known, names, words))
        yield chat(turns)


def _exchange(rng: random.Random, known: dict[str, list[str]], names: list[str], words: list[str]) -> list[tuple[str, str]]:
    dice = rng.random()
    if dice < 0.1:
        questions, answer = rng.choice(_SMALL_TALK)
        return [("user", rng.choice(questions)), ("assistant", answer)]
    subject = rng.choice(names)
    if dice < 0.2:
        other = rng.choice(names)
        question = rng.choice(("What is the difference between {x} and {y}?", "Compare {x} and {y}.", "{x} or {y}?"))
        text = f"Let me compare them. {known[subject][0]} {known[other][0]} {known[subject][1]} {known[other][1]}"
        return [("user", question.format(x=subject, y=other)), ("assistant", text)]
    if dice < 0.4:
        odd = [rng.choice(words) for _ in range(rng.randint(1, 40))]
        odd.insert(rng.randint(0, len(odd)), subject)
        if rng.random() < 0.5:
            odd.insert(rng.randint(0, len(odd)), rng.choice(("🌊", "水", "É", "12", "x = 3;", "42", "déjà vu", "привет", "{}")))
        opening = f"I know only a little, but I can say something about {subject}."
        return [("user", " ".join(odd)), ("assistant", " ".join([opening, *known[subject]]))]
    questions, order, start = rng.choice(_KINDS)
    question = rng.choice(questions).format(x=subject)
    return [("user", question), ("assistant", start.format(x=subject) + " ".join(known[subject][i] for i in order))]
