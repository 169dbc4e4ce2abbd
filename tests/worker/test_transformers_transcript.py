"""From ids to text: whole characters, no stop string ever shown, and the same text however the ids come in."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dispatch.messages import FinishReason
from worker.engines.transcript import Transcript
from worker.engines.transformers_loading import DEMO_FOLDER

TOKENIZER = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json"))
END = TOKENIZER.token_to_id("<|end|>")
TEXTS = [
    "The gate opens.",
    "🌊🌊 a river 水力发电 é ü ß",
    "👩‍👩‍👧‍👦 family",
    "\ufffd real replacement \ufffd",
    " leading and trailing \n",
]


def decode(ids: Sequence[int]) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=True)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def shown(ids: Sequence[int], **options: object) -> str:
    transcript = Transcript(decode, **{"max_tokens": 10_000, "eos": frozenset({END}), **options})
    for token in ids:
        transcript.feed(token)
    return transcript.take()


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_out_whole_and_never_half_a_character(text: str) -> None:
    transcript = Transcript(decode, max_tokens=10_000, eos=frozenset({END}))
    pieces = []
    for token in [*encode(text), END]:
        transcript.feed(token)
        pieces.append(transcript.take())
    assert "".join(pieces) == text
    assert transcript.ending is FinishReason.STOP
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1).filter(lambda token: token != END), max_size=40))
def test_any_ids_give_the_text_of_decoding_them_at_once(ids: list[int]) -> None:
    assert shown([*ids, END]) == decode(ids)


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="ab🌊é水 ", max_size=30),
    st.lists(st.text(alphabet="ab🌊é水 ", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_string_is_never_shown_and_nothing_before_it_is_lost(text: str, stops: list[str]) -> None:
    transcript = Transcript(decode, max_tokens=10_000, stop=stops, eos=frozenset({END}))
    out = ""
    for token in [*encode(text), END]:
        transcript.feed(token)
        out += transcript.take()
        assert not any(stop in out for stop in stops)
    assert transcript.ending is FinishReason.STOP
    cuts = [text.find(stop) for stop in stops if stop in text]
    if not cuts:
        assert out == text
    else:
        # Stops are looked for after each token, so the first to be complete decides.
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(stop) for stop in stops)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), min_size=1, max_size=30),
    st.lists(st.text(alphabet="aet 🌊", min_size=1, max_size=3), max_size=2),
    st.data(),
)
def test_a_later_attempt_goes_on_with_exactly_the_rest(ids: list[int], stops: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(ids)))
    options = {"stop": stops, "max_tokens": len(ids)}
    later = Transcript(decode, eos=frozenset({END}), **options)
    for token in ids[:cut]:
        later.feed(token)
    before = later.take()
    for token in ids[cut:]:
        later.feed(token)
    assert before == shown(ids[:cut], **options)
    assert before + later.take() == shown(ids, **options)
    assert later.ending is not None


def test_the_limit_of_tokens_ends_it_and_shows_what_was_held_back() -> None:
    ids = encode("wait for ST")
    transcript = Transcript(decode, max_tokens=len(ids), stop=("STOP",))
    for token in ids:
        transcript.feed(token)
    assert transcript.take() == "wait for ST"
    assert transcript.ending is FinishReason.LENGTH
