"""Makes the demo model: `python -m worker.models.make_demo [folder]` trains a small Llama on our own text and saves it.

A stock architecture saved with `save_pretrained`, so the code that loads any model folder or hub id loads it. Takes a
few minutes on two cores. Never here: the text (demo_data.py, demo_text.txt).
"""

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any

from worker.models.demo_data import BOS, CHAT_TEMPLATE, EOS, PAD, ROLES, documents

SEED = 20
CONTEXT_TOKENS = 2048
VOCABULARY = 1536


def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer: any UTF-8 text has tokens, and any tokens have bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, BOS, EOS, *ROLES.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(documents(SEED), 2000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: Any) -> Any:
    """The untrained network."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(model: Any, tokenizer: Any, steps: int) -> None:
    """Teach it the documents: rows of whole documents, longer rows towards the end so that late positions are known."""
    import torch

    source = documents(SEED + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.05)
    began = time.monotonic()
    model.train()
    for step in range(steps):
        rows, length = (2, 1024) if step % 10 == 9 and step > steps // 2 else (16, 192)
        batch = torch.tensor([_row(source, tokenizer, length) for _ in range(rows)])
        rate = 3e-3 * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}/{steps} loss {loss.item():.3f} {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201


def _row(source: Any, tokenizer: Any, length: int) -> list[int]:
    row: list[int] = []
    while len(row) < length:
        row.extend(tokenizer(next(source), add_special_tokens=False)["input_ids"])
    return row[:length]


def main() -> None:
    """Make the model and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "demo")
    parser.add_argument("--steps", type=int, default=1400)
    arguments = parser.parse_args()

    import torch

    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, tokenizer, arguments.steps)
    model.eval()
    # So small a model rambles when its words are drawn freely.
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.2
    model.generation_config.max_new_tokens = 256
    model.to(torch.bfloat16).save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
