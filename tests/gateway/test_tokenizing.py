"""The gateway counts without torch what the engine would compute: ids equal to the library's own."""

from pathlib import Path
from typing import Any

import pytest

from dispatch.errors import PenstockError
from dispatch.reports import TokenizerFiles
from gateway.tokenizing import ModelTokenizer

DEMO = Path(__file__).parents[2] / "worker" / "models" / "demo"

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello, how are you?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me\n\nabout  rivers. "}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "é\U0001f600 <b>&\"' 日本"},
    ],
    [{"role": "user", "content": "word " * 3000}],
    [{"role": "user", "content": ""}],
]

# What templates in the wild use: trimmed blocks, loop controls, tojson, namespaces, raise_exception, generation marks.
TRICKY = """{{- bos_token }}
{% set ns = namespace(n=0) %}
{% for message in messages %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
    {% set ns.n = ns.n + 1 %}
  <|{{ message['role'] }}|>{{ {"text": message['content'] | trim, "n": ns.n} | tojson }}
    {% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}{{ eos_token }}"""


def theirs(template: str | None = None) -> Any:
    transformers = pytest.importorskip(
        "transformers", reason="the [transformers] extra is not installed: nothing to compare with"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def ours(tokenizer: Any) -> ModelTokenizer:
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return ModelTokenizer(TokenizerFiles(tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template or "", special))


@pytest.mark.parametrize("template", [None, TRICKY])
async def test_chats_give_the_librarys_own_ids(template: str | None) -> None:
    tokenizer = theirs(template)
    mine = ours(tokenizer)
    for chat in CHATS:
        expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert await mine.chat(chat) == tuple(expected), chat


async def test_plain_prompts_give_the_librarys_own_ids() -> None:
    tokenizer = theirs()
    mine = ours(tokenizer)
    for text in ("once upon a time", "  two  spaces\n", "é\U0001f600", "x " * 5000):
        assert await mine.text(text) == tuple(tokenizer(text)["input_ids"])


async def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    from tests.gateway.test_refusals import tiny_tokenizer

    json = tiny_tokenizer().tokenizer_json
    for template in (
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ undefined_function() }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ dict.__subclasses__() }}",
    ):
        with pytest.raises(PenstockError) as refused:
            await ModelTokenizer(TokenizerFiles(json, template)).chat(CHATS[0])
        assert refused.value.param == "messages"
    with pytest.raises(PenstockError) as none:
        await ModelTokenizer(TokenizerFiles(json, "")).chat(CHATS[0])
    assert none.value.code == "unsupported"
